//! A differential fuzz of the stream: commands of every kind at a source, trouble on the way, and both sides compared.
//!
//! What differs also between the source and a native replica of its own version is nobody's fault and is excused.
//! A run that fails is repeated from the list of what was done, and the list is made short by halves.

mod asked;
mod commands;
mod form;
mod grammar;
mod judge;
mod maker;
mod moves;
mod sender;
mod shorten;
mod world;

pub use asked::Asked;
pub use moves::move_slot;

use crate::support::rng::Rng;
use maker::{Event, Maker, Step};
use std::time::{Duration, Instant};
use world::World;

/// Steps before the migration begins, so that its snapshot holds something.
const BEFORE: u64 = 600;
/// Steps between two looks at what happens to the migration.
const BATCH: u64 = 200;

/// Runs as asked; fails the test with the shortest list of steps that makes a difference.
pub fn run(asked: &Asked) {
    println!("KEYFERRY_FUZZ=\"{asked}\"");
    let mut world = World::start(asked);
    let mut done = Vec::new();
    let Err(difference) = fuzz(&mut world, asked, &mut done) else {
        return;
    };
    println!("after {} steps: {difference}", done.len());
    let list = shorten::shorten(&mut world, &done, &difference, asked.shorten);
    panic!(
        "a difference after {} steps: {difference}\n{list}\nKEYFERRY_FUZZ=\"{asked}\"",
        done.len()
    );
}

/// What was found to differ.
pub struct Difference {
    pub keys: Vec<Vec<u8>>,
    pub text: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn fuzz(world: &mut World, asked: &Asked, done: &mut Vec<Step>) -> Result<(), Difference> {
    let mut maker = Maker::new(asked.seed, world.able().clone());
    let mut trouble = Rng::new(asked.seed ^ 0x7467);
    let began = Instant::now();
    let (mut steps, mut rest_at, mut rests) = (0, BEFORE * 2, 0);
    while steps < asked.commands && began.elapsed() < asked.time {
        if steps == BEFORE {
            world.begin();
            done.push(Step::Event(Event::Begin));
            // Now and then all of it is written while the snapshot is on its way.
            if trouble.chance(60) {
                done.push(Step::Event(Event::Rest));
                world.rest()?;
            }
        }
        if steps % (BATCH * 10) == 0 {
            maker.dumps = world.dumps(maker.rng());
        }
        let from = done.len();
        for _ in 0..BATCH {
            done.push(maker.step());
        }
        steps += BATCH;
        if asked.trouble && steps > BEFORE && trouble.chance(4) {
            done.push(Step::Event(event(&mut trouble, world)));
        }
        world.perform(&done[from..])?;
        if steps >= rest_at {
            done.push(Step::Event(Event::Rest));
            world.rest()?;
            rests += 1;
            // Rests far apart let a lag grow; near ones catch what later writes would cover.
            rest_at = steps + BATCH * [3, 10, 40, 100][trouble.below(4) as usize];
        }
    }
    world.rest()?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{steps} steps and {rests} comparisons in {seconds:.1} s; {}",
        world.account()
    );
    Ok(())
}

fn event(rng: &mut Rng, world: &World) -> Event {
    loop {
        let ms = [1, 30, 300, 1_000][rng.below(4) as usize];
        return match rng.below(12) {
            0..=2 => Event::Kill(ms),
            3 => Event::Stop,
            4 => Event::Freeze(ms),
            5 => Event::SourceSilent(ms),
            6 => Event::TargetSilent(ms),
            7 => Event::SourceCut,
            8 => Event::TargetCut,
            9 => Event::Delay(rng.below(2) * rng.below(30)),
            _ => match world.slots().len() as u64 {
                0 => continue,
                n => Event::MoveSlot(world.slots()[rng.below(n) as usize]),
            },
        };
    }
}

/// How long a test of this size may take.
pub fn time(seconds: u64, minutes: u64) -> Duration {
    match std::env::var_os("KEYFERRY_FULL") {
        Some(_) => Duration::from_secs(minutes * 60),
        None => Duration::from_secs(seconds),
    }
}
