//! Starting brokers and running commands.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Nothing that a test runs may take longer.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_timberline"));
    // What the developer's shell says must not matter.
    for (name, _) in std::env::vars() {
        if name.starts_with("TIMBERLINE_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// It ended with exit code 0 and said nothing on standard error.
    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self
    }

    /// It ended with this code and every part is on standard error.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Ran {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.err.contains(part), "`{part}` is not in: {}", self.err);
        }
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let lines = self.out.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }
}

/// Runs a command to its end, with this on its standard input.
#[track_caller]
pub(crate) fn run(mut command: Command, input: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A command that fails early does not read it all.
        let _ = stdin.write_all(&input);
    });
    let ran = finish(child);
    writer.join().unwrap();
    ran
}

/// Waits for a child whose output is piped; kills it when it takes too long.
#[track_caller]
pub(crate) fn finish(child: Child) -> Ran {
    finish_within(child, PATIENCE)
}

/// As [`finish`], with this patience.
#[track_caller]
pub(crate) fn finish_within(child: Child, patience: Duration) -> Ran {
    let pid = child.id();
    let (done, waited) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || done.send(child.wait_with_output().unwrap()));
    let output = waited.recv_timeout(patience).unwrap_or_else(|_| {
        signal(pid, Signal::KILL);
        panic!("a command did not end");
    });
    waiter.join().unwrap().unwrap();
    output.into()
}

/// Runs `timberline` without a broker.
#[track_caller]
pub(crate) fn alone<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    let mut command = binary();
    command.args(args);
    run(command, b"")
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// A broker over a temporary directory.
pub(crate) struct Broker {
    dir: TempDir,
    child: Option<Child>,
    grpc: String,
}

impl Broker {
    #[track_caller]
    pub(crate) fn start() -> Broker {
        Broker::start_with(&[])
    }

    /// With more flags of `server`.
    #[track_caller]
    pub(crate) fn start_with(flags: &[&str]) -> Broker {
        let dir = TempDir::new().unwrap();
        let mut broker = Broker {
            dir,
            child: None,
            grpc: "127.0.0.1:0".to_owned(),
        };
        broker.spawn(flags);
        broker
    }

    /// Starts it (again) on the same directory and port.
    #[track_caller]
    pub(crate) fn spawn(&mut self, flags: &[&str]) {
        let out = self.dir.path().join("stdout");
        let child = binary()
            .arg("server")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--grpc-listen", &self.grpc, "--http-listen", "127.0.0.1:0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(self.log_path()).unwrap())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let announced = wait_for("the broker to serve", || {
            let text = fs::read_to_string(&out).unwrap();
            text.contains("  data ").then_some(text)
        });
        let line = announced
            .lines()
            .find(|line| line.contains("gRPC"))
            .unwrap();
        self.grpc = line.split_whitespace().nth(1).unwrap().to_owned();
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A place for files beside the broker's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("stderr")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    pub(crate) fn announced(&self) -> String {
        fs::read_to_string(self.dir.path().join("stdout")).unwrap()
    }

    pub(crate) fn grpc(&self) -> &str {
        &self.grpc
    }

    /// A command that will talk to it.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = binary();
        command.args(args).env("TIMBERLINE_BOOTSTRAP", &self.grpc);
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        run(self.command(args), b"")
    }

    #[track_caller]
    pub(crate) fn run_with(&self, args: &[&str], input: impl AsRef<[u8]>) -> Ran {
        run(self.command(args), input.as_ref())
    }

    /// SIGKILL.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        signal(child.id(), Signal::KILL);
        child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        signal(child.id(), Signal::TERM);
        wait_for("the broker to stop", || child.try_wait().unwrap())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the broker's log:\n{}", self.log());
        }
    }
}

/// Asks again until there is an answer.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Every segment file below a data directory.
pub(crate) fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for topic in fs::read_dir(data_dir.join("logs")).unwrap() {
        for file in fs::read_dir(topic.unwrap().path()).unwrap() {
            found.push(file.unwrap().path());
        }
    }
    found.sort();
    found
}

/// Random bytes.
pub(crate) fn random(len: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; len];
    rand::rngs::SmallRng::seed_from_u64(7).fill_bytes(&mut bytes);
    bytes
}
