//! Which process a number stands for.
//!
//! The system gives a dead process's number to another one sooner or later. A process is therefore known by its number,
//! the moment of its start and the boot it belongs to, and nothing is ever signalled whose start is another one. Between
//! the look and the signal lies a moment in which a number could be given anew; the system goes through all of its numbers
//! before it uses one again, so that moment would have to last for tens of thousands of starts.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A process, for as long as the machine is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since the machine did.
    pub started_ticks: u64,
    /// Which life of the machine that was.
    pub boot_id: String,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    /// It runs, or waits for something.
    Running,
    /// It is held by SIGSTOP.
    Paused,
    /// It is no more.
    Down,
}

impl ProcessState {
    /// As it is written for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            ProcessState::Running => "running",
            ProcessState::Paused => "paused",
            ProcessState::Down => "down",
        }
    }
}

impl ProcessIdentity {
    /// The process that has this number now.
    ///
    /// # Errors
    /// [`Error::Io`]: there is none, or `/proc` can't be read.
    pub fn of(pid: u32) -> Result<ProcessIdentity> {
        let path = stat_path(pid);
        let text = std::fs::read_to_string(&path)
            .map_err(Error::io(format!("reading {}", path.display())))?;
        let (_, started_ticks) = parse_stat(&text)
            .ok_or_else(|| Error::Invalid(format!("{} makes no sense", path.display())))?;
        Ok(ProcessIdentity {
            pid,
            started_ticks,
            boot_id: boot_id(),
        })
    }

    /// What it does now. Another process under its number counts as down.
    pub fn state(&self) -> ProcessState {
        let now = std::fs::read_to_string(stat_path(self.pid));
        match now.ok().as_deref().and_then(parse_stat) {
            Some((state, started))
                if started == self.started_ticks && self.boot_id == boot_id() =>
            {
                match state {
                    'T' | 't' => ProcessState::Paused,
                    // Dead, and only its parent has not looked yet.
                    'Z' | 'X' => ProcessState::Down,
                    _ => ProcessState::Running,
                }
            }
            _ => ProcessState::Down,
        }
    }

    /// Ends it at once, as a crash would. A process that is down stays so.
    ///
    /// # Errors
    /// [`Error::Io`]: it belongs to somebody else.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Asks it to end.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Holds it where it is.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if self.state() == ProcessState::Down {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(()) };
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::io(format!("signalling process {}", self.pid))(
                error.into(),
            )),
        }
    }
}

fn stat_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/stat"))
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// State and start of a process out of `/proc/PID/stat`: the fields 3 and 22 (proc(5)). The second field is the
/// program's name in brackets and may hold anything, brackets and blanks too.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let (_, behind) = text.rsplit_once(')')?;
    let mut fields = behind.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_name_of_a_program_may_hold_anything() {
        let text =
            "17 (a) b (c) S 1 17 17 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 8675309 1000 10 18446";
        assert_eq!(parse_stat(text), Some(('S', 8_675_309)));
        assert_eq!(parse_stat("17 (x) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_is_paused_resumed_ended_and_its_number_means_nobody_else() {
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        let wait_for = |state| {
            while identity.state() != state {
                std::thread::yield_now();
            }
        };
        wait_for(ProcessState::Running);
        identity.pause().unwrap();
        wait_for(ProcessState::Paused);
        identity.resume().unwrap();
        wait_for(ProcessState::Running);
        // The same number, started at another moment: not touched.
        let other = ProcessIdentity {
            started_ticks: identity.started_ticks + 1,
            ..identity.clone()
        };
        assert_eq!(other.state(), ProcessState::Down);
        other.kill().unwrap();
        assert_eq!(identity.state(), ProcessState::Running);
        let other_boot = ProcessIdentity {
            boot_id: "another".to_owned(),
            ..identity.clone()
        };
        assert_eq!(other_boot.state(), ProcessState::Down);
        identity.kill().unwrap();
        wait_for(ProcessState::Down);
        child.wait().unwrap();
        identity.kill().unwrap();
        assert!(ProcessIdentity::of(identity.pid).is_err());
    }
}
