//! The members of one set, sorted set or hash, sorted by their bytes in bounded memory.
//!
//! What does not fit is sorted and written to an unnamed temporary file; at the end the runs are merged.

use super::shared::temporary;
use crate::error::{Context, ErrorKind, Result};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};

/// Bytes held before a run is written.
const HELD: usize = 12 << 20;
const RUN_BUFFER: usize = 32 << 10;

/// Members with what belongs to them, in the order of their bytes once [`Members::sorted`] is called.
#[derive(Default)]
pub struct Members {
    /// Records: member, then what belongs to it.
    bytes: Vec<u8>,
    /// Where each record begins, and how long its member and the rest are.
    places: Vec<Place>,
    runs: Vec<File>,
}

#[derive(Clone, Copy)]
struct Place {
    at: usize,
    member: u32,
    rest: u32,
}

impl Members {
    pub fn push(&mut self, member: &[u8], rest: &[&[u8]]) -> Result<()> {
        let size = member.len() + rest.iter().map(|r| r.len()).sum::<usize>();
        if self.bytes.len() + self.places.len() * size_of::<Place>() + size > HELD
            && !self.places.is_empty()
        {
            self.spill()?;
        }
        let at = self.bytes.len();
        self.bytes.extend_from_slice(member);
        rest.iter().for_each(|r| self.bytes.extend_from_slice(r));
        // Strings of more than 4 GiB are refused long before.
        let rest = self.bytes.len() - at - member.len();
        self.places.push(Place {
            at,
            member: member.len() as u32,
            rest: rest as u32,
        });
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let member = |p: &Place| bytes.get(p.at..p.at + p.member as usize);
        self.places.sort_by(|a, b| member(a).cmp(&member(b)));
    }

    fn spill(&mut self) -> Result<()> {
        self.sort();
        let write = || -> std::io::Result<File> {
            let mut out = BufWriter::with_capacity(256 << 10, tempfile::tempfile()?);
            for p in &self.places {
                out.write_all(&p.member.to_le_bytes())?;
                out.write_all(&p.rest.to_le_bytes())?;
                let end = p.at + (p.member + p.rest) as usize;
                out.write_all(self.bytes.get(p.at..end).unwrap_or_default())?;
            }
            let mut file = out.into_inner()?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        };
        let run = write().context(ErrorKind::Disk, temporary)?;
        self.runs.push(run);
        self.bytes.clear();
        self.places.clear();
        Ok(())
    }

    /// Hands over every member in order, and is empty afterwards.
    pub fn sorted(&mut self, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        if self.runs.is_empty() {
            self.sort();
            for p in &self.places {
                let split = p.at + p.member as usize;
                let member = self.bytes.get(p.at..split).unwrap_or_default();
                let rest = self.bytes.get(split..split + p.rest as usize);
                each(member, rest.unwrap_or_default())?;
            }
            self.bytes.clear();
            self.places.clear();
            return Ok(());
        }
        self.spill()?;
        self.bytes = Vec::new();
        self.places = Vec::new();
        let mut runs: Vec<Run> = std::mem::take(&mut self.runs)
            .into_iter()
            .map(|f| Run {
                file: BufReader::with_capacity(RUN_BUFFER, f),
                rest: Vec::new(),
            })
            .collect();
        let mut heads = BinaryHeap::new();
        for (i, run) in runs.iter_mut().enumerate() {
            if let Some(member) = run.next().context(ErrorKind::Disk, temporary)? {
                heads.push(Reverse((member, i)));
            }
        }
        while let Some(Reverse((member, i))) = heads.pop() {
            let Some(run) = runs.get_mut(i) else { continue };
            each(&member, &run.rest)?;
            if let Some(member) = run.next().context(ErrorKind::Disk, temporary)? {
                heads.push(Reverse((member, i)));
            }
        }
        Ok(())
    }
}

struct Run {
    file: BufReader<File>,
    rest: Vec<u8>,
}

impl Run {
    /// The next member; what belongs to it is in `rest`.
    fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut lens = [0u8; 8];
        match self.file.read_exact(&mut lens) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let [a, b, c, d, e, f, g, h] = lens;
        let mut member = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
        self.file.read_exact(&mut member)?;
        self.rest
            .resize(u32::from_le_bytes([e, f, g, h]) as usize, 0);
        self.file.read_exact(&mut self.rest)?;
        Ok(Some(member))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_merged_in_order() {
        let mut members = Members::default();
        let n = 400_000u64;
        for i in 0..n {
            let member = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_string();
            members
                .push(member.as_bytes(), &[&i.to_le_bytes(), &[7; 20]])
                .unwrap();
        }
        assert!(members.runs.len() > 1);
        let (mut last, mut count) = (Vec::new(), 0);
        members
            .sorted(|member, rest| {
                assert!(last.as_slice() < member);
                let i = u64::from_le_bytes(rest.first_chunk().copied().unwrap());
                let expected = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_string();
                assert_eq!(member, expected.as_bytes());
                last = member.to_vec();
                count += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(count, n);
    }
}
