//! What a dev cluster's directory remembers of it: who its brokers are, where they listen, and which processes they were.
//!
//! The file is replaced as a whole, under a lock, so commands on the same directory don't get in each other's way. A process
//! is remembered with its start, so that a recycled number is never signalled.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use timberline_workload::{BrokerAddresses, BrokerSpec, ProcessIdentity, ProcessState};

use crate::failure::Failure;

/// The file's name.
const FILE: &str = "cluster.json";
/// Held by whoever changes it.
const LOCK: &str = "cluster.lock";
/// The version of its format.
const VERSION: u32 = 1;

/// The cluster of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    pub(super) brokers: Vec<DevBroker>,
}

/// One of its brokers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DevBroker {
    pub(super) id: i32,
    pub(super) rack: Option<String>,
    pub(super) addresses: BrokerAddresses,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
    /// Its last process; none once it was brought down.
    pub(super) process: Option<ProcessIdentity>,
}

impl DevBroker {
    pub(super) fn state(&self) -> ProcessState {
        let process = self.process.as_ref();
        process.map_or(ProcessState::Down, ProcessIdentity::state)
    }

    /// The process, unless it is down.
    pub(super) fn alive(&self) -> Option<&ProcessIdentity> {
        let process = self.process.as_ref();
        process.filter(|process| process.state() != ProcessState::Down)
    }
}

impl State {
    pub(super) fn of(specs: &[BrokerSpec]) -> State {
        let broker = |spec: &BrokerSpec| DevBroker {
            id: spec.id,
            rack: spec.rack.clone(),
            addresses: spec.addresses,
            data_dir: spec.data_dir.clone(),
            log: spec.log.clone(),
            process: None,
        };
        State {
            version: VERSION,
            brokers: specs.iter().map(broker).collect(),
        }
    }

    /// How the brokers are started.
    pub(super) fn specs(&self) -> Vec<BrokerSpec> {
        let seeds: Vec<SocketAddr> = match self.brokers.as_slice() {
            [_] => Vec::new(),
            all => all.iter().map(|broker| broker.addresses.peer).collect(),
        };
        let spec = |broker: &DevBroker| BrokerSpec {
            id: broker.id,
            rack: broker.rack.clone(),
            seeds: seeds.clone(),
            addresses: broker.addresses,
            data_dir: broker.data_dir.clone(),
            log: broker.log.clone(),
            flags: Vec::new(),
        };
        self.brokers.iter().map(spec).collect()
    }

    /// Clients' addresses.
    pub(super) fn bootstrap(&self) -> String {
        let brokers = self.brokers.iter();
        let addresses: Vec<_> = brokers
            .map(|broker| broker.addresses.grpc.to_string())
            .collect();
        addresses.join(",")
    }

    /// Whether a process of it lives.
    pub(super) fn is_alive(&self) -> bool {
        self.brokers.iter().any(|broker| broker.alive().is_some())
    }

    /// The broker of this number.
    pub(super) fn broker(&mut self, id: i32) -> Result<&mut DevBroker, Failure> {
        let known: Vec<_> = self
            .brokers
            .iter()
            .map(|broker| broker.id.to_string())
            .collect();
        let found = self.brokers.iter_mut().find(|broker| broker.id == id);
        found.ok_or_else(|| {
            Failure::usage(format!(
                "there is no broker {id}: there are {}",
                known.join(", ")
            ))
            .next("See them with `timberline dev status`.")
        })
    }
}

/// A directory under lock.
pub(super) struct Locked {
    dir: PathBuf,
    /// The lock goes with it.
    _lock: File,
}

impl Locked {
    /// Waits for whoever has the lock: nobody holds it for long.
    pub(super) fn new(dir: &Path) -> Result<Locked, Failure> {
        let path = dir.join(LOCK);
        let failed = |error: std::io::Error| failed("locking", &path, &error);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Locked {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    pub(super) fn read(&self) -> Result<Option<State>, Failure> {
        read(&self.dir)
    }

    /// Replaces the file.
    pub(super) fn write(&self, state: &State) -> Result<(), Failure> {
        let path = self.dir.join(FILE);
        let text = serde_json::to_string_pretty(state)
            .map_err(|error| Failure::failed(format!("writing {}: {error}", path.display())))?;
        let new = path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| failed("writing", &path, &error))
    }
}

/// The cluster of a directory, if it has one.
pub(super) fn read(dir: &Path) -> Result<Option<State>, Failure> {
    let path = dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("reading", &path, &error)),
    };
    let bad = |why: String| {
        Failure::failed(format!("{}: {why}", path.display())).next(
            "If its brokers are gone, remove the file; their data lies beside it, in broker-N.",
        )
    };
    let state: State = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    if state.version != VERSION {
        return Err(bad(format!("version {} is not known", state.version)));
    }
    Ok(Some(state))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use timberline_workload::ClusterOptions;

    use super::*;

    fn state(brokers: usize) -> State {
        let options = ClusterOptions {
            base_port: Some(7071),
            ..ClusterOptions::new("timberline", "/dev-dir", brokers)
        };
        State::of(&options.plan().unwrap())
    }

    #[test]
    fn what_is_written_is_read_and_starts_the_same_brokers() {
        let dir = tempfile::tempdir().unwrap();
        let locked = Locked::new(dir.path()).unwrap();
        assert!(locked.read().unwrap().is_none());
        let mut state = state(3);
        state.brokers[1].process = Some(ProcessIdentity {
            pid: 1,
            started_ticks: 2,
            boot_id: "long ago".to_owned(),
        });
        locked.write(&state).unwrap();
        let read = locked.read().unwrap().unwrap();
        assert_eq!(read, state);
        assert_eq!(
            read.bootstrap(),
            "127.0.0.1:7071,127.0.0.1:7081,127.0.0.1:7091"
        );
        let specs = read.specs();
        assert_eq!(specs[2].seeds.len(), 3);
        assert_eq!(specs[2].rack.as_deref(), Some("c"));
        // Process 1 lives, and is not that broker.
        assert!(!read.is_alive());
        assert_eq!(read.brokers[1].state(), ProcessState::Down);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for text in ["", "{}", "{\"version\": 99, \"brokers\": []}"] {
            fs::write(&path, text).unwrap();
            assert!(read(dir.path()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_broker_is_named_with_those_there_are() {
        let mut state = state(2);
        assert_eq!(state.broker(2).unwrap().id, 2);
        let failure = state.broker(3).unwrap_err();
        assert_eq!(failure.code(), crate::failure::USAGE);
    }

    #[test]
    fn a_cluster_of_one_has_no_seeds() {
        assert!(state(1).specs()[0].seeds.is_empty());
    }
}
