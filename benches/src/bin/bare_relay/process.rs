//! A replica as a process of its own, ended by its id when dropped.

use std::io::{BufRead, BufReader, Lines, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;

/// A running replica.
pub(crate) struct Replica {
    child: Child,
    /// Held open, for it ends when this closes; [`Child::wait`] would close it.
    _input: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Replica {
    /// Starts this program in a role and waits until it listens.
    pub(crate) fn start(
        role: &str,
        file: &Path,
        followers: &[SocketAddr],
    ) -> anyhow::Result<Replica> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(role)
            .arg(file)
            .args(followers.iter().map(SocketAddr::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| anyhow::anyhow!("a replica has no output"))?;
        let mut replica = Replica {
            _input: child.stdin.take(),
            child,
            said: BufReader::new(stdout).lines(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        replica.address = replica.next()?;
        Ok(replica)
    }

    /// Waits for its end; gives the bytes that it has synced.
    pub(crate) fn finish(&mut self) -> anyhow::Result<u64> {
        let bytes = self.next()?;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "a replica ended with {status}");
        Ok(bytes)
    }

    /// The next line that it prints.
    fn next<T: FromStr>(&mut self) -> anyhow::Result<T> {
        let line = self
            .said
            .next()
            .ok_or_else(|| anyhow::anyhow!("a replica ended early"))??;
        line.parse()
            .map_err(|_| anyhow::anyhow!("a replica says {line:?}"))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends this process once the one that started it is gone: its standard input closes then.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
}
