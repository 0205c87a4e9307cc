//! A broker in a process of its own.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use timberline_client::{Client, ClientOptions};

use crate::error::{Error, Result};
use crate::identity::{ProcessIdentity, ProcessState};
use crate::ports::BrokerAddresses;

/// Lines of the broker's log that an error shows.
const TAIL_LINES: usize = 12;
/// Bytes of the log's end that are searched for them.
const TAIL_BYTES: u64 = 16 << 10;
/// Between two looks whether the broker answers, or has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How a broker is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSpec {
    /// Its number in the cluster, from 1.
    pub id: i32,
    /// The failure domain it stands in.
    pub rack: Option<String>,
    /// Peer addresses of the brokers that found the cluster, the same on all of them; empty for a cluster of one.
    pub seeds: Vec<SocketAddr>,
    /// Where it listens.
    pub addresses: BrokerAddresses,
    /// Where its data lies.
    pub data_dir: PathBuf,
    /// The file that its output goes to the end of.
    pub log: PathBuf,
    /// More flags of `timberline server`.
    pub flags: Vec<String>,
}

impl BrokerSpec {
    /// What is written behind the program's name.
    pub fn arguments(&self) -> Vec<String> {
        let addresses = &self.addresses;
        let mut arguments = vec![
            "server".to_owned(),
            "--data-dir".to_owned(),
            self.data_dir.display().to_string(),
            "--broker-id".to_owned(),
            self.id.to_string(),
            "--grpc-listen".to_owned(),
            addresses.grpc.to_string(),
            "--http-listen".to_owned(),
            addresses.http.to_string(),
            "--peer-listen".to_owned(),
            addresses.peer.to_string(),
            "--peer-advertise".to_owned(),
            addresses.peer.to_string(),
        ];
        if let Some(rack) = &self.rack {
            arguments.extend(["--rack".to_owned(), rack.clone()]);
        }
        if !self.seeds.is_empty() {
            let seeds: Vec<_> = self.seeds.iter().map(SocketAddr::to_string).collect();
            arguments.extend(["--seeds".to_owned(), seeds.join(",")]);
        }
        arguments.extend(self.flags.iter().cloned());
        arguments
    }

    /// Starts it. It is out of the way of a terminal's Ctrl-C, which is for whoever started it.
    ///
    /// # Errors
    /// [`Error::Io`]: the program or the log can't be opened.
    pub fn start(&self, program: &Path) -> Result<BrokerProcess> {
        let output = open_log(&self.log)?;
        let errors = output
            .try_clone()
            .map_err(Error::io(format!("opening {}", self.log.display())))?;
        let mut command = Command::new(program);
        // What the user's shell says to clients is not meant for brokers.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TIMBERLINE_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(Error::io(format!("starting {}", program.display())))?;
        match ProcessIdentity::of(child.id()) {
            Ok(identity) => Ok(BrokerProcess {
                child: Some(child),
                identity,
                log: self.log.clone(),
                grpc: self.addresses.grpc,
            }),
            Err(error) => {
                // Not known, so not kept.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

/// A running broker. Dropped, it is killed.
#[derive(Debug)]
pub struct BrokerProcess {
    /// `None` once it is left to itself.
    child: Option<Child>,
    identity: ProcessIdentity,
    log: PathBuf,
    grpc: SocketAddr,
}

impl BrokerProcess {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Which process it is.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// What it does now.
    pub fn state(&self) -> ProcessState {
        self.identity.state()
    }

    /// Waits until it answers clients; returns how long that took from this call.
    ///
    /// # Errors
    /// [`Error::Process`]: it ended, or does not answer in time.
    pub async fn wait_ready(&mut self, patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let failure = match Client::connect(probe_options(self.grpc)).await {
                Ok(_) => return Ok(begun.elapsed()),
                Err(error) => error.to_string(),
            };
            self.check_alive()?;
            if begun.elapsed() > patience {
                return Err(self.failed(format!("the broker does not answer: {failure}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// # Errors
    /// [`Error::Process`]: it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait().ok().flatten(),
            None => None,
        };
        match ended {
            Some(status) => Err(self.failed(format!("the broker ended by itself ({status})"))),
            None => Ok(()),
        }
    }

    /// Ends it with SIGKILL, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kill(&mut self) -> Result<()> {
        let io = || Error::io("killing a broker");
        if let Some(child) = &mut self.child {
            child.kill().map_err(io())?;
            child.wait().map_err(io())?;
        }
        Ok(())
    }

    /// Asks it to stop with SIGTERM and waits until it has; returns how long that took.
    ///
    /// # Errors
    /// [`Error::Process`]: it did not stop in time, and was killed, or did not stop well.
    pub async fn terminate(&mut self, patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        self.identity.terminate()?;
        loop {
            let ended = match &mut self.child {
                Some(child) => child
                    .try_wait()
                    .map_err(Error::io("waiting for a broker"))?,
                None => return Ok(begun.elapsed()),
            };
            match ended {
                Some(status) if status.success() => return Ok(begun.elapsed()),
                Some(status) => {
                    return Err(self.failed(format!("the broker did not stop well ({status})")));
                }
                None if begun.elapsed() > patience => {
                    self.kill()?;
                    return Err(self.failed(format!(
                        "the broker did not stop within {patience:?} of SIGTERM and was killed"
                    )));
                }
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Holds it with SIGSTOP.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pause(&self) -> Result<()> {
        self.identity.pause()
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resume(&self) -> Result<()> {
        self.identity.resume()
    }

    /// Leaves it running; it is not killed with this value.
    pub fn leave(mut self) -> ProcessIdentity {
        self.child = None;
        self.identity.clone()
    }

    pub(crate) fn failed(&self, what: String) -> Error {
        Error::process(what, &self.log)
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// For a look whether a broker answers.
pub(crate) fn probe_options(grpc: SocketAddr) -> ClientOptions {
    ClientOptions::default()
        .bootstrap([grpc.to_string()])
        .connect_timeout(Duration::from_secs(1))
        .request_timeout(Duration::from_secs(2))
}

/// The last lines of a log.
pub(crate) fn tail_of(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut bytes = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(end.saturating_sub(TAIL_BYTES)))?;
        file.take(TAIL_BYTES).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io(format!("opening {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> BrokerSpec {
        BrokerSpec {
            id: 2,
            rack: Some("b".to_owned()),
            seeds: Vec::new(),
            addresses: BrokerAddresses::from_base(7071, 1).unwrap(),
            data_dir: "d/data".into(),
            log: "d/log".into(),
            flags: vec!["--set".to_owned(), "a.b=c".to_owned()],
        }
    }

    #[test]
    fn a_broker_without_seeds_founds_a_cluster_of_its_own() {
        let line = spec().arguments().join(" ");
        assert_eq!(
            line,
            "server --data-dir d/data --broker-id 2 --grpc-listen 127.0.0.1:7081 --http-listen 127.0.0.1:7083 --peer-listen 127.0.0.1:7082 --peer-advertise 127.0.0.1:7082 --rack b --set a.b=c"
        );
    }

    #[test]
    fn seeds_are_peer_addresses() {
        let at = |at| BrokerAddresses::from_base(7071, at).unwrap().peer;
        let seeds = vec![at(0), at(1), at(2)];
        let line = BrokerSpec { seeds, ..spec() }.arguments().join(" ");
        assert!(
            line.contains("--seeds 127.0.0.1:7072,127.0.0.1:7082,127.0.0.1:7092 --set"),
            "{line}"
        );
    }
}
