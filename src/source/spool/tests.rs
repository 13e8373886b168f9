//! What is spooled comes back, also over segments, restarts and what was left to the disk.

use super::files::segments;
use super::shared::{SEGMENT_BYTES, UNREAD_BYTES};
use super::*;
use crate::types::ReplOffset;
use std::io::Read;
use std::time::Duration;

#[test]
fn the_stream_reads_back_over_segments_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 40).unwrap();
    spool.start_stream(ReplOffset(1000));
    let piece = vec![7u8; (SEGMENT_BYTES / 2 + 3) as usize];
    let mut writer = SpoolWriter::new(spool.clone());
    for _ in 0..3 {
        writer.append_stream(&piece, 5).unwrap();
    }
    let total = 3 * piece.len() as u64;
    let mut tail = StreamTail::new(spool.clone(), ReplOffset(1000));
    let mut seen = 0;
    while seen < total {
        let mut buf = Vec::new();
        seen += tail.read(&mut buf, 1 << 20).unwrap() as u64;
        assert!(buf.iter().all(|b| *b == 7));
    }
    spool.release(ReplOffset(1000 + total)).unwrap();
    assert_eq!(
        segments(dir.path()).unwrap().len(),
        1,
        "only the unfinished segment is left"
    );
    let again = Spool::open(dir.path(), 1 << 40).unwrap();
    assert_eq!(again.stream_end(), ReplOffset(1000 + total));
    SpoolWriter::new(again.clone())
        .append_stream(b"xyz", 6)
        .unwrap();
    let mut buf = Vec::new();
    StreamTail::new(again, ReplOffset(1000 + total))
        .read(&mut buf, 10)
        .unwrap();
    assert_eq!(buf, b"xyz");
}

#[test]
fn what_was_left_to_the_disk_can_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 40).unwrap();
    let mut writer = SpoolWriter::new(spool.clone());
    let all: Vec<u8> = (0..4 * UNREAD_BYTES).map(|n| (n % 251) as u8).collect();
    for (i, piece) in all.chunks(UNREAD_BYTES as usize).enumerate() {
        writer.append_snapshot(piece).unwrap();
        spool.leave_to_disk(UNREAD_BYTES * (i as u64 + 1));
    }
    assert_eq!(
        spool.state().snapshot.on_disk,
        (3 * UNREAD_BYTES, 4 * UNREAD_BYTES)
    );
    spool.leave_to_disk(UNREAD_BYTES);
    writer.finish_snapshot()().unwrap();
    let mut again = Vec::new();
    SnapshotTail::new(spool, 0).read_to_end(&mut again).unwrap();
    assert!(again == all);
}

#[test]
fn a_snapshot_is_read_while_it_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 40).unwrap();
    let reader = std::thread::spawn({
        let spool = spool.clone();
        move || {
            let mut all = Vec::new();
            SnapshotTail::new(spool, 0)
                .read_to_end(&mut all)
                .map(|_| all)
        }
    });
    let mut writer = SpoolWriter::new(spool);
    for piece in [b"REDIS".as_slice(), b"0011", b"..."] {
        writer.append_snapshot(piece).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    writer.finish_snapshot()().unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), b"REDIS0011...");
}

#[test]
fn what_was_written_while_the_link_was_down_is_as_old_as_the_outage() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 40).unwrap();
    spool.start_stream(ReplOffset(100));
    let (before, after) = (ReplOffset(100), ReplOffset(150));
    assert_eq!(spool.behind_ms(before, 1_000), 0);
    spool.set_link(false, 1_000);
    assert_eq!(spool.behind_ms(before, 3_000), 2_000);
    spool.await_offset(after);
    spool.set_link(true, 4_000);
    // Nothing has arrived yet, and yet it is known to be under way.
    assert_eq!(spool.lag_ms(before, 5_000), 0);
    assert_eq!(spool.behind_ms(before, 5_000), 4_000);
    SpoolWriter::new(spool.clone())
        .append_stream(&[b'.'; 50], 5_000)
        .unwrap();
    assert_eq!(spool.behind_ms(before, 5_500), 4_500);
    assert_eq!(
        (spool.lag_ms(before, 5_500), spool.age_ms(before, 5_500)),
        (500, 4_500)
    );
    assert_eq!(spool.behind_ms(after, 6_000), 0);
    assert_eq!(spool.behind_ms(before, 7_000), 0, "it was applied once");
    let next_run = Spool::open(dir.path(), 1 << 40).unwrap();
    next_run.set_behind(8_000);
    assert_eq!(next_run.behind_ms(after, 10_000), 2_000);
    next_run.await_offset(after);
    next_run.set_link(true, 10_000);
    assert_eq!(next_run.behind_ms(after, 10_000), 0);
}

#[test]
fn what_is_unpacked_of_another_file_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(&dir.path().join("spool"), 1 << 30).unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for (path, text) in [(&a, "first"), (&b, "other")] {
        std::fs::write(path, text).unwrap();
    }
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let first = spool.unpack(0, &a).unwrap();
    let tenth = spool.unpack(10, &a).unwrap();
    assert_eq!(read(&first), "first");
    assert_eq!(spool.unpack(0, &a).unwrap(), first);
    assert_eq!(read(&spool.unpack(0, &b).unwrap()), "other");
    assert!(!first.exists() && tenth.exists());
    // The same name, and other bytes.
    std::fs::write(&b, "longer than before").unwrap();
    assert_eq!(read(&spool.unpack(0, &b).unwrap()), "longer than before");
    spool.drop_snapshot().unwrap();
    assert!(!tenth.exists());
}
