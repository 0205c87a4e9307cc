//! A broker in a process of its own.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use timberline_client::{Client, ClientOptions};

use crate::error::{Error, Result};

/// Lines of the broker's log that an error shows.
const TAIL_LINES: usize = 12;
/// Between two looks whether the broker answers.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Where a broker listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerAddresses {
    /// Clients' gRPC.
    pub grpc: SocketAddr,
    /// Probes and metrics.
    pub http: SocketAddr,
}

impl BrokerAddresses {
    /// Two loopback ports that nobody listens on now. Somebody else may take them before the broker does.
    ///
    /// # Errors
    /// The system has no port left.
    pub fn free() -> Result<BrokerAddresses> {
        let io = || Error::io("looking for a free port on 127.0.0.1");
        // Both are held until both are known, so that they differ.
        let grpc = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io())?;
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io())?;
        Ok(BrokerAddresses {
            grpc: grpc.local_addr().map_err(io())?,
            http: http.local_addr().map_err(io())?,
        })
    }
}

/// A running broker. Dropped, it is killed.
#[derive(Debug)]
pub struct BrokerProcess {
    child: Child,
    addresses: BrokerAddresses,
    log: PathBuf,
}

impl BrokerProcess {
    /// Starts `program server` over a data directory; its output goes to the end of the file `log`.
    ///
    /// # Errors
    /// [`Error::Io`]: the program or the log can't be opened.
    pub fn start(
        program: &Path,
        data_dir: &Path,
        addresses: BrokerAddresses,
        log: &Path,
    ) -> Result<BrokerProcess> {
        let output = open_log(log)?;
        let errors = output
            .try_clone()
            .map_err(Error::io(format!("opening {}", log.display())))?;
        let child = Command::new(program)
            .arg("server")
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--grpc-listen", &addresses.grpc.to_string()])
            .args(["--http-listen", &addresses.http.to_string()])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(Error::io(format!("starting {}", program.display())))?;
        Ok(BrokerProcess {
            child,
            addresses,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn addresses(&self) -> BrokerAddresses {
        self.addresses
    }

    /// Waits until it answers clients; returns how long that took from this call.
    ///
    /// # Errors
    /// [`Error::Process`]: it ended, or does not answer in time.
    pub async fn wait_ready(&mut self, patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let options = ClientOptions::default()
                .bootstrap([self.addresses.grpc.to_string()])
                .connect_timeout(Duration::from_secs(1))
                .request_timeout(Duration::from_secs(2));
            let failure = match Client::connect(options).await {
                Ok(_) => return Ok(begun.elapsed()),
                Err(error) => error.to_string(),
            };
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(format!("the broker ended at its start ({status})")));
            }
            if begun.elapsed() > patience {
                return Err(self.failed(format!("the broker does not answer: {failure}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends it with SIGKILL, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kill(&mut self) -> Result<()> {
        let io = || Error::io("killing the broker");
        self.child.kill().map_err(io())?;
        self.child.wait().map_err(io())?;
        Ok(())
    }

    fn failed(&self, what: String) -> Error {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        Error::Process {
            what,
            log: self.log.clone(),
            tail: lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"),
        }
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io(format!("opening {}", path.display())))
}
