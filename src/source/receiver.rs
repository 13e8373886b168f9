//! The snapshot among the bytes of a link: where it ends, by its length or by its mark.

use crate::error::Result;
use crate::source::handshake::{self, Framing};
use crate::source::spool::SpoolWriter;
use crate::task::failpoint;

pub struct Receiver<'a> {
    pub framing: Framing,
    pub writer: &'a mut SpoolWriter,
}

impl Receiver<'_> {
    /// Moves the snapshot's bytes from `buf` to the spool; true when it has ended (`buf` then holds stream).
    pub fn take(&mut self, buf: &mut Vec<u8>) -> Result<bool> {
        failpoint("snapshot-arriving");
        let (snapshot, skip, done) = handshake::cut(&mut self.framing, buf);
        if snapshot > 0 {
            self.writer
                .append_snapshot(buf.get(..snapshot).unwrap_or_default())?;
        }
        buf.drain(..snapshot + skip);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::spool::Spool;

    /// The 40-byte end mark is found wherever the reads happen to cut it, and what follows it is stream.
    #[test]
    fn the_end_mark_may_be_cut_anywhere() {
        let mark = *b"0123456789abcdef0123456789abcdef01234567";
        let body = b"REDIS0011 some bytes 0123456789abcdef0123 and more\xff12345678".to_vec();
        let wire = [body.as_slice(), &mark, b"*1\r\n$4\r\nPING\r\n"].concat();
        for cut in 1..wire.len() {
            let dir = tempfile::tempdir().unwrap();
            let spool = Spool::open(dir.path(), 1 << 30).unwrap();
            let mut writer = SpoolWriter::new(spool.clone());
            let framing = Framing::Mark {
                mark,
                finder: memchr::memmem::Finder::new(&mark).into_owned(),
            };
            let mut receiver = Receiver {
                framing,
                writer: &mut writer,
            };
            let mut buf = Vec::new();
            let mut done = false;
            for piece in wire.chunks(cut) {
                buf.extend_from_slice(piece);
                done = done || receiver.take(&mut buf).unwrap();
            }
            assert!(done, "cut {cut}");
            assert_eq!(buf, b"*1\r\n$4\r\nPING\r\n", "cut {cut}");
            assert_eq!(
                std::fs::read(spool.snapshot_path()).unwrap(),
                body,
                "cut {cut}"
            );
        }
    }
}
