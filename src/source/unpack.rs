//! Snapshots that come compressed: found by their first bytes, unpacked while they are read.
//!
//! gzip, zstd and LZ4 frames as their tools write them, and the envelope of Valkey 9.2 (compression_stream.h): a header
//! of 8 bytes that begins with `VKCS`, or of 7 that begins with `VCS`, then the frames. The envelope was not tried on a
//! server: one that holds something else is refused.

use crate::error::{Context, Error, ErrorKind, Result};
use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use std::io::{self, BufRead, BufReader, Cursor, Read};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const LZ4: &[u8] = &[0x04, 0x22, 0x4d, 0x18];
/// So much tells what a file is.
const START: usize = 12;
const BUFFER: usize = 256 << 10;
/// How far back a zstd frame may refer, all of which is held: `zstd` without `--ultra` and `--long` writes 8 MiB at most.
const WINDOW: u64 = 32 << 20;

/// How a file is packed, and the length of what stands before the packed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Not,
    Gzip,
    Zstd(usize),
    Lz4(usize),
}

/// Whether a file begins like a packed one.
pub fn is_packed(start: &[u8]) -> bool {
    start.starts_with(b"VKCS")
        || start.starts_with(b"VCS")
        || [GZIP, ZSTD, LZ4]
            .iter()
            .any(|magic| start.starts_with(magic))
}

fn packing(start: &[u8]) -> Result<Packing> {
    if start.starts_with(GZIP) {
        return Ok(Packing::Gzip);
    }
    if start.starts_with(ZSTD) {
        return Ok(Packing::Zstd(0));
    }
    if start.starts_with(LZ4) {
        return Ok(Packing::Lz4(0));
    }
    // Magic, version 1, codec, flags, and what it is: 0 or 1 a snapshot in the older text, 1 in the newer.
    let (len, version, codec) = match start {
        [b'V', b'K', b'C', b'S', version, codec, _, _, ..] => (8, *version, *codec),
        [b'V', b'C', b'S', version, codec, _, _, ..] => (7, *version, *codec),
        _ => return Ok(Packing::Not),
    };
    let frames = start.get(len..).unwrap_or_default();
    match (version, codec) {
        (1, 1) if frames.starts_with(LZ4) => Ok(Packing::Lz4(len)),
        (1, 2) if frames.starts_with(ZSTD) => Ok(Packing::Zstd(len)),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the snapshot is compressed by Valkey (envelope version {version}, codec {codec}) in a form that is not known: only standard LZ4 frames (codec 1) and zstd frames (codec 2) behind the header are"
            ),
        )
        .hint("write it again with `CONFIG SET rdbcompression yes` (LZF, which every version reads), or take the data from the live server")),
    }
}

/// The plain bytes of `input`, packed or not.
///
/// Errors: `Unsupported` for an envelope in an unknown form.
pub fn unpacked(input: Box<dyn Read>) -> Result<Box<dyn Read>> {
    Ok(unpacked_or_plain(input)?.0)
}

/// The same, and whether they were packed.
pub fn unpacked_or_plain(mut input: Box<dyn Read>) -> Result<(Box<dyn Read>, bool)> {
    let mut start = Vec::with_capacity(START);
    (input.by_ref().take(START as u64))
        .read_to_end(&mut start)
        .context(ErrorKind::Disk, || "read the snapshot".to_owned())?;
    let packing = packing(&start)?;
    let skip = match packing {
        Packing::Zstd(n) | Packing::Lz4(n) => n,
        Packing::Not | Packing::Gzip => 0,
    };
    let whole = Cursor::new(start.split_off(skip)).chain(input);
    let plain: Box<dyn Read> = match packing {
        Packing::Not => Box::new(whole),
        Packing::Gzip => Box::new(MultiGzDecoder::new(buffered(whole))),
        Packing::Zstd(_) => Box::new(Zstd {
            waiting: Some(buffered(whole)),
            frame: None,
        }),
        Packing::Lz4(_) => Box::new(Lz4(lz4_flex::frame::FrameDecoder::new(buffered(whole)))),
    };
    Ok((plain, packing != Packing::Not))
}

fn buffered<R: Read>(input: R) -> BufReader<R> {
    BufReader::with_capacity(BUFFER, input)
}

/// zstd frames, one after the other.
struct Zstd<R: Read> {
    waiting: Option<R>,
    frame: Option<Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>>,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(frame) = &mut self.frame {
                match frame.read(buf)? {
                    0 => self.waiting = self.frame.take().map(|f| f.into_inner()),
                    n => return Ok(n),
                }
            }
            let Some(mut input) = self.waiting.take() else {
                return Ok(0);
            };
            if input.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let frame = StreamingDecoder::new_with_max_window_size(input, WINDOW)
                .map_err(|e| io::Error::other(format!("a zstd frame: {e}")))?;
            self.frame = Some(Box::new(frame));
        }
    }
}

/// LZ4 frames, one after the other.
struct Lz4<R: Read>(lz4_flex::frame::FrameDecoder<R>);

impl<R: BufRead> Read for Lz4<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buf)? {
                0 if !buf.is_empty() && !self.0.get_mut().fill_buf()?.is_empty() => {}
                n => return Ok(n),
            }
        }
    }
}
