//! One broker as a process, ended by its id when dropped.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process;

/// How long a broker may take to serve.
const START_WITHIN: Duration = Duration::from_secs(60);

/// A running broker.
pub(crate) struct Broker {
    child: Child,
    grpc: String,
    /// From exec to `/readyz`.
    pub(crate) started_in: Duration,
}

impl Broker {
    /// Starts one on free ports and waits until it serves.
    pub(crate) fn start(data: &Path) -> anyhow::Result<Broker> {
        let (grpc, http) = (free_address()?, free_address()?);
        let began = Instant::now();
        let child = Command::new(process::beside("timberline")?)
            .arg("server")
            .arg("--data-dir")
            .arg(data)
            .args(["--grpc-listen", &grpc, "--http-listen", &http])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut broker = Broker {
            child,
            grpc,
            started_in: Duration::ZERO,
        };
        while !is_ready(&http) {
            anyhow::ensure!(
                broker.child.try_wait()?.is_none(),
                "the broker ended at its start"
            );
            anyhow::ensure!(
                began.elapsed() < START_WITHIN,
                "the broker does not become ready"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        broker.started_in = began.elapsed();
        Ok(broker)
    }

    /// Runs a client command against it.
    pub(crate) fn client(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut all = args.to_vec();
        all.extend(["--bootstrap", &self.grpc]);
        process::run(&process::beside("timberline")?, &all)
    }

    /// Runs `timberline bench`.
    pub(crate) fn bench(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut all = vec!["bench"];
        all.extend(args);
        all.extend(["-o", "json"]);
        self.client(&all)
    }

    /// CPU used so far, seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        process::cpu_seconds(self.child.id())
    }

    /// Resident memory, by what backs it.
    pub(crate) fn memory(&self) -> anyhow::Result<String> {
        process::memory(self.child.id())
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn is_ready(http: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(http)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
