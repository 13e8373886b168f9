//! The one integration binary.

mod check;
mod cli;
mod command_keys;
mod cutover;
mod cutover_killed;
mod faults;
mod faults_expiry;
mod house;
mod journeys;
mod judge;
mod latency;
mod migrate_matrix;
mod migrate_resume;
mod migrate_trouble;
mod rdb_hostile;
mod rdb_properties;
mod rdb_samples;
mod rdb_servers;
mod scan;
mod selection;
mod support;
mod tokens;
mod topology;
mod verify;
mod verify_ways;
mod workers;
