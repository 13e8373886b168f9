//! Which of the source's masters one worker of a migration takes: what `--shards`, `--worker` and `--workers` say.
//!
//! Masters are numbered from 0, in the order of their lowest slots.

use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeSet;

/// More masters than any cluster has; keeps a mistyped range from becoming a list that fills the memory.
const MOST: usize = 16_384;

/// One worker's share of the source's masters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// These.
    Listed(BTreeSet<usize>),
    /// Every `of`th, beginning with `worker`.
    Every { worker: usize, of: usize },
}

impl Share {
    /// Numbers and ranges between commas, as in "0-2,5".
    pub fn listed(text: &str) -> Result<Share> {
        let wrong = || {
            Error::new(ErrorKind::Usage, format!("--shards cannot be {text:?}")).hint(
                "give numbers of source masters, counted from 0, and ranges of them, as in 0-2,5",
            )
        };
        let mut listed = BTreeSet::new();
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => listed.extend(first..=last),
                _ => return Err(wrong()),
            }
        }
        Ok(Share::Listed(listed))
    }

    /// "0/3": the first of three workers.
    pub fn worker(text: &str) -> Result<Share> {
        let parts = text.split_once('/');
        match parts.and_then(|(worker, of)| Some((number(worker)?, number(of)?))) {
            Some((worker, of)) if worker < of => Ok(Share::Every { worker, of }),
            _ => Err(
                Error::new(ErrorKind::Usage, format!("--worker cannot be {text:?}")).hint(
                    "give the worker's number, counted from 0, and how many there are, as in 0/3, 1/3 and 2/3",
                ),
            ),
        }
    }

    /// One of `of` workers, by the number that an engine has given it in the environment variable `variable`.
    pub fn numbered(of: usize, variable: &str, value: Option<&str>) -> Result<Share> {
        let wrong = |what: String| {
            Error::new(ErrorKind::Usage, what).hint(format!(
                "{variable} holds the worker's number, counted from 0: a Kubernetes Job with completionMode Indexed sets it; elsewhere say --worker 0/{of}"
            ))
        };
        if of == 0 {
            return Err(wrong("--workers cannot be 0".into()));
        }
        let Some(value) = value else {
            return Err(wrong(format!(
                "--workers {of} needs the environment variable {variable}, which is not set"
            )));
        };
        match number(value) {
            Some(worker) if worker < of => Ok(Share::Every { worker, of }),
            _ => Err(wrong(format!(
                "{variable} is {value:?}, which is none of the {of} workers of --workers"
            ))),
        }
    }

    /// Reads what [`Share::flag`] has written.
    pub fn typed(text: &str) -> Result<Share> {
        match text.split_once(' ') {
            Some(("--worker", worker)) => Share::worker(worker),
            Some(("--shards", list)) => Share::listed(list),
            _ => Err(Error::new(
                ErrorKind::State,
                format!("a worker's share cannot be {text:?}"),
            )),
        }
    }

    /// The share as it is typed; no two shares look alike.
    pub fn flag(&self) -> String {
        match self {
            Share::Listed(listed) => format!("--shards {}", ranges(listed, ",")),
            Share::Every { worker, of } => format!("--worker {worker}/{of}"),
        }
    }

    /// The name of the folder that holds its state.
    pub fn folder(&self) -> String {
        match self {
            Share::Listed(listed) => format!("shards-{}", ranges(listed, "+")),
            Share::Every { worker, of } => format!("worker-{worker}-of-{of}"),
        }
    }

    /// The numbers of its masters, of so many.
    pub fn of(&self, masters: usize) -> Result<Vec<usize>> {
        let there = match masters {
            1 => "the source has one master: number 0".to_owned(),
            n => format!("the source has {n} masters: numbers 0 to {}", n - 1),
        };
        match self {
            Share::Listed(listed) => match listed.iter().find(|n| **n >= masters) {
                None => Ok(listed.iter().copied().collect()),
                Some(beyond) => Err(Error::new(
                    ErrorKind::Usage,
                    format!("{} names the master {beyond}, but {there}", self.flag()),
                )
                .hint("name each of these masters in the --shards of one worker")),
            },
            Share::Every { worker, .. } if *worker >= masters => Err(Error::new(
                ErrorKind::Usage,
                format!("{} has nothing to do: {there}", self.flag()),
            )
            .hint(format!("run at most {masters} workers"))),
            Share::Every { worker, of } => Ok((*worker..masters).step_by(*of).collect()),
        }
    }
}

fn number(text: &str) -> Option<usize> {
    text.trim().parse().ok().filter(|n| *n < MOST)
}

fn ranges(listed: &BTreeSet<usize>, between: &str) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for n in listed {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *n => *last = *n,
            _ => ranges.push((*n, *n)),
        }
    }
    let text: Vec<String> = (ranges.into_iter())
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    text.join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_as_it_is_written() {
        for (text, shown, folder) in [
            ("0", "--shards 0", "shards-0"),
            ("0-2", "--shards 0-2", "shards-0-2"),
            ("5, 0-1,2", "--shards 0-2,5", "shards-0-2+5"),
            ("3,3,3-3", "--shards 3", "shards-3"),
        ] {
            let share = Share::listed(text).unwrap();
            assert_eq!(
                (share.flag().as_str(), share.folder().as_str()),
                (shown, folder)
            );
            assert_eq!(Share::typed(shown).unwrap(), share);
        }
        for text in [
            "",
            "a",
            "2-1",
            "0-",
            "-1",
            "0,,1",
            "0;1",
            "0-99999999",
            "1.5",
        ] {
            let e = Share::listed(text).expect_err(text);
            assert_eq!(e.exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn a_worker_takes_every_nth_master() {
        let of_three = |n: usize| Share::worker(&format!("{n}/3")).unwrap().of(7).unwrap();
        assert_eq!(of_three(0), [0, 3, 6]);
        assert_eq!(of_three(1), [1, 4]);
        assert_eq!(of_three(2), [2, 5]);
        assert_eq!(Share::worker("1/3").unwrap().folder(), "worker-1-of-3");
        for text in ["", "1", "3/3", "0/0", "a/3", "1/b", "-1/3"] {
            assert_eq!(
                Share::worker(text).expect_err(text).exit_code(),
                2,
                "{text}"
            );
        }
    }

    #[test]
    fn an_engine_gives_the_number_in_a_variable() {
        let share = Share::numbered(3, "INDEX", Some("2")).unwrap();
        assert_eq!(share, Share::worker("2/3").unwrap());
        assert_eq!(share, Share::typed(&share.flag()).unwrap());
        for (of, value) in [(3, None), (3, Some("3")), (3, Some("x")), (0, Some("0"))] {
            let e = Share::numbered(of, "INDEX", value).unwrap_err();
            assert!(e.exit_code() == 2 && e.remedy().contains("INDEX"), "{e}");
        }
    }

    #[test]
    fn beyond_what_there_is_is_refused_with_what_there_is() {
        assert_eq!(Share::listed("0,2").unwrap().of(3).unwrap(), [0, 2]);
        let e = Share::listed("1-3").unwrap().of(3).unwrap_err();
        assert!(
            e.exit_code() == 2 && e.to_string().contains("the master 3"),
            "{e}"
        );
        assert!(e.to_string().contains("3 masters: numbers 0 to 2"), "{e}");
        let e = Share::worker("1/2").unwrap().of(1).unwrap_err();
        assert!(
            e.exit_code() == 2 && e.to_string().contains("one master"),
            "{e}"
        );
    }
}
