//! Sends steps to the source, pipelined, and follows slots that move; what servers refuse is no concern of it.

use super::maker::Words;
use crate::support::side::Side;
use crate::support::wire::{Client, Command, Value};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender as Channel, channel};
use std::sync::{Arc, Mutex};

pub fn command(words: &Words) -> Command {
    Command::new("").args(words.iter())
}

/// Commands that one client sends in a row, to the node of a key.
pub struct Row<'a> {
    pub db: u32,
    pub key: &'a [u8],
    pub commands: &'a [Words],
}

pub struct Sender {
    url: String,
    cluster: bool,
    side: Side,
    /// The database that is selected.
    db: u32,
    /// Replies by command: how many were errors, of how many.
    pub counted: BTreeMap<String, (u64, u64)>,
}

impl Sender {
    pub fn open(url: &str, cluster: bool) -> io::Result<Sender> {
        Ok(Sender {
            url: url.to_owned(),
            cluster,
            side: Side::open(url, cluster)?,
            db: 0,
            counted: BTreeMap::new(),
        })
    }

    /// Sends rows and reads their replies; an error is a connection's.
    pub fn send(&mut self, rows: &[Row<'_>]) -> io::Result<()> {
        let mut expected = Vec::new();
        for row in rows {
            let node = self.side.node_of(row.key);
            if !self.cluster && row.db != self.db {
                self.db = row.db;
                let select = Command::new("SELECT").arg(row.db);
                self.side.nodes()[node].push(&select);
                expected.push((node, None));
            }
            for words in row.commands {
                self.side.nodes()[node].push(&command(words));
                expected.push((node, Some((words, row.commands.len() == 1))));
            }
        }
        for node in self.side.nodes() {
            node.flush()?;
        }
        let (mut moved, mut asked) = (false, Vec::new());
        for (node, words) in expected {
            let reply = self.side.nodes()[node].read()?;
            let Some((words, alone)) = words else {
                continue;
            };
            let name = String::from_utf8_lossy(&words[0]).into_owned();
            let count = self.counted.entry(name).or_default();
            count.1 += 1;
            if let Value::Error(text) = &reply {
                count.0 += 1;
                moved |= text.starts_with("MOVED");
                if let (true, Some(rest)) = (alone, text.strip_prefix("ASK ")) {
                    let address = rest.split(' ').nth(1).unwrap_or_default();
                    asked.push((address.to_owned(), words));
                }
            }
        }
        for (address, words) in asked {
            let mut client = Client::connect(&address)?;
            client.push(&Command::new("ASKING"));
            client.push(&command(words));
            client.replies()?;
        }
        if moved {
            self.side = Side::open(&self.url, self.cluster)?;
        }
        Ok(())
    }

    pub fn side(&mut self) -> &mut Side {
        &mut self.side
    }

    /// Selects a database for what is asked beside the rows.
    pub fn select(&mut self, db: u32) -> io::Result<()> {
        if !self.cluster && db != self.db {
            self.side.everywhere(&format!("SELECT {db}"))?;
            self.db = db;
        }
        Ok(())
    }
}

type Wait = (u32, Vec<u8>, Words);

/// Clients that wait for keys, each for one command at a time.
pub struct Waiters {
    queue: Channel<Wait>,
    under_way: Arc<AtomicUsize>,
}

impl Waiters {
    pub fn start(url: &str, cluster: bool) -> Waiters {
        let (queue, taken) = channel();
        let taken: Arc<Mutex<Receiver<Wait>>> = Arc::new(Mutex::new(taken));
        let under_way = Arc::new(AtomicUsize::new(0));
        for _ in 0..2 {
            let (taken, under_way, url) = (taken.clone(), under_way.clone(), url.to_owned());
            std::thread::spawn(move || {
                let mut sender = Sender::open(&url, cluster).ok();
                loop {
                    let next = taken.lock().unwrap_or_else(|e| e.into_inner()).recv();
                    let Ok((db, key, words)) = next else { return };
                    let row = Row {
                        db,
                        key: &key,
                        commands: &[words],
                    };
                    if sender.as_mut().is_none_or(|s| s.send(&[row]).is_err()) {
                        sender = Sender::open(&url, cluster).ok();
                    }
                    under_way.fetch_sub(1, SeqCst);
                }
            });
        }
        Waiters { queue, under_way }
    }

    pub fn wait(&self, db: u32, key: &[u8], words: &Words) {
        self.under_way.fetch_add(1, SeqCst);
        let sent = self.queue.send((db, key.to_vec(), words.clone()));
        assert!(sent.is_ok(), "the waiting clients are gone");
    }

    /// How many commands are waiting, or waiting to wait.
    pub fn under_way(&self) -> usize {
        self.under_way.load(SeqCst)
    }
}
