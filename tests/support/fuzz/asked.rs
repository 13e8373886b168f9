//! What a run of the fuzz is asked for, as KEYFERRY_FUZZ says it: "source=redis-7.0 target=redis-8.0-cluster plan=skip".

use std::fmt;
use std::time::Duration;

#[derive(Clone)]
pub struct Asked {
    /// Names of servers; "-cluster" behind one makes it a cluster.
    pub source: String,
    pub target: String,
    /// Forms of the plan, joined by "+": see `form.rs`.
    pub plan: String,
    pub seed: u64,
    /// It ends after so many steps, or when the time is over.
    pub commands: u64,
    pub time: Duration,
    pub trouble: bool,
    /// How long it may look for a shorter list.
    pub shorten: Duration,
    /// Every step is sent alone, so that a server's crash is seen at its step.
    pub slow: bool,
    /// Words of commands that are left out, with commas between.
    pub without: String,
    /// A key of the target is spoilt before each comparison: the fuzz must find that.
    pub spoil: bool,
}

impl Asked {
    pub fn new(source: &str, target: &str, plan: &str, seed: u64, time: Duration) -> Asked {
        Asked {
            source: source.to_owned(),
            target: target.to_owned(),
            plan: plan.to_owned(),
            seed,
            commands: u64::MAX,
            time,
            trouble: true,
            shorten: Duration::from_secs(60),
            slow: false,
            without: String::new(),
            spoil: false,
        }
    }

    /// What KEYFERRY_FUZZ says; a word that is not known fails the test.
    pub fn from_environment() -> Option<Asked> {
        let text = std::env::var("KEYFERRY_FUZZ").ok()?;
        let seed = crate::support::versions::seed();
        let mut asked = Asked::new("redis-7.0", "redis-7.0", "plain", seed, Duration::MAX);
        for word in text.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || -> u64 { value.parse().unwrap_or_else(|_| panic!("{word}: a number")) };
            match name {
                "source" => value.clone_into(&mut asked.source),
                "target" => value.clone_into(&mut asked.target),
                "plan" => value.clone_into(&mut asked.plan),
                "seed" => asked.seed = number(),
                "commands" => asked.commands = number(),
                "seconds" => asked.time = Duration::from_secs(number()),
                "trouble" => asked.trouble = value != "no",
                "without" => value.clone_into(&mut asked.without),
                "slow" => asked.slow = value != "no",
                "shorten" => asked.shorten = Duration::from_secs(number()),
                _ => panic!("KEYFERRY_FUZZ knows no {name:?}"),
            }
        }
        if asked.commands == u64::MAX && asked.time == Duration::MAX {
            asked.time = Duration::from_secs(60);
        }
        Some(asked)
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, target, plan, seed) = (&self.source, &self.target, &self.plan, self.seed);
        write!(f, "source={source} target={target} plan={plan} seed={seed}")?;
        if self.commands < u64::MAX {
            write!(f, " commands={}", self.commands)?;
        }
        if self.time < Duration::MAX {
            write!(f, " seconds={}", self.time.as_secs())?;
        }
        if !self.without.is_empty() {
            write!(f, " without={}", self.without)?;
        }
        if !self.trouble {
            write!(f, " trouble=no")?;
        }
        Ok(())
    }
}
