//! Brokers and examples as processes, and records for them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use timberline_client::{Client, ClientOptions, NewTopic, ProducerOptions, ProducerRecord};
use tokio::task::JoinHandle;

/// Nothing that a test waits for may take longer.
const PATIENCE: Duration = Duration::from_secs(90);

/// Longer than a session.
const PAUSE: Duration = Duration::from_millis(1_800);

/// Asks again until there is an answer.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where the build puts binaries: this test is in `deps` below.
fn target() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().to_owned()
}

/// The broker's binary. A test of the whole workspace has built it; a test of this crate alone may have to.
fn timberline() -> PathBuf {
    let target = target();
    let binary = target.join("timberline");
    if !binary.exists() {
        let profile = match target.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            other => other,
        };
        let built = Command::new(env!("CARGO"))
            .args(["build", "--locked", "-p", "timberline-cli", "--profile"])
            .arg(profile)
            .status()
            .unwrap();
        assert!(built.success() && binary.exists(), "no {binary:?}");
    }
    binary
}

/// A command that what the developer's shell says does not reach.
fn command(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars() {
        if name.starts_with("TIMBERLINE_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A process whose output goes to a file. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    out: PathBuf,
}

impl Process {
    pub(crate) fn start(mut command: Command, out: PathBuf) -> Process {
        let file = File::create(&out).unwrap();
        let child = command
            .stderr(file.try_clone().unwrap())
            .stdout(file)
            .spawn()
            .unwrap();
        Process { child, out }
    }

    /// What it said so far.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap()).into_owned()
    }

    /// Waits until it has said this many lines.
    #[track_caller]
    pub(crate) fn says(&mut self, lines: usize) -> String {
        wait_for("a line of an example", || {
            let said = self.said();
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended ({ended:?}): {said}");
            (said.lines().count() >= lines).then_some(said)
        })
    }

    /// Waits until it ends well; what it said.
    #[track_caller]
    pub(crate) fn ends(mut self) -> String {
        let status = wait_for("an example to end", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", self.said());
        self.said()
    }

    /// SIGTERM, and what it said once it has ended well.
    #[track_caller]
    pub(crate) fn stop(self) -> String {
        self.signal("TERM");
        self.ends()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "ended ({ended:?}): {}", self.said());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.out.display(), self.said());
        }
    }
}

/// A broker over a temporary directory. A member that is killed holds its partitions for a second.
pub(crate) struct Broker {
    process: Option<Process>,
    dir: TempDir,
    grpc: String,
    started: usize,
}

impl Broker {
    pub(crate) fn start() -> Broker {
        let mut broker = Broker {
            process: None,
            dir: TempDir::new().unwrap(),
            grpc: "127.0.0.1:0".to_owned(),
            started: 0,
        };
        broker.spawn();
        broker
    }

    fn spawn(&mut self) {
        let mut server = command(&timberline());
        server
            .arg("server")
            .arg("--data-dir")
            .arg(self.path("data"))
            .args(["--grpc-listen", &self.grpc, "--http-listen", "127.0.0.1:0"])
            .env("TIMBERLINE_GROUPS__SESSION_TIMEOUT", "1s");
        let process = Process::start(server, self.out("broker"));
        let line = wait_for("the broker to serve", || {
            let said = process.said();
            let mut lines = said.lines();
            let line = lines.find(|line| line.contains("gRPC") && line.contains("127.0.0.1:"));
            line.filter(|_| said.contains("  data ")).map(str::to_owned)
        });
        self.grpc = line.split_whitespace().nth(1).unwrap().to_owned();
        self.process = Some(process);
    }

    /// SIGKILL, and up again on the same port.
    pub(crate) fn kill_and_restart(&mut self) {
        self.process.take().unwrap().kill();
        self.spawn();
    }

    /// A place for files beside the broker's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn out(&mut self, name: &str) -> PathBuf {
        self.started += 1;
        self.path(&format!("{name}-{}.out", self.started))
    }

    /// Starts an example.
    pub(crate) fn example(&mut self, name: &str, args: &[&str]) -> Process {
        let binary = target().join("examples").join(name);
        assert!(
            binary.exists(),
            "a plain `cargo test` builds the examples; here: cargo build -p timberline-client --examples"
        );
        let mut example = command(&binary);
        example.args(args).env("TIMBERLINE_BOOTSTRAP", &self.grpc);
        Process::start(example, self.out(name))
    }

    pub(crate) async fn client(&self) -> Client {
        let options = ClientOptions::default().bootstrap([&self.grpc]);
        Client::connect(options).await.unwrap()
    }

    pub(crate) async fn topic(&self, name: &str, partitions: i32) -> Client {
        let client = self.client().await;
        let topic = NewTopic::new(name, partitions);
        client.admin().create_topic(topic).await.unwrap();
        client
    }
}

/// Sends records until it is told to stop. Keys are `k0` to `k9`, values the numbers from 0, timestamps a second apart from 0.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Load {
    pub(crate) fn start(client: Client, topic: &'static str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let producer = client.producer(ProducerOptions::default()).await.unwrap();
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                for number in sent..sent + 20 {
                    // `flush` tells of failures.
                    drop(producer.send(record(topic, number)).await.unwrap());
                }
                sent += 20;
                producer.flush().await.unwrap();
                // Paced, so that there are many small batches for kills to fall between.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            sent
        });
        Load { stop, task }
    }

    /// How many there are.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn record(topic: &str, number: u64) -> ProducerRecord {
    ProducerRecord::keyed(topic, format!("k{}", number % 10), number.to_string())
        .with_timestamp_ms(number as i64 * 1_000)
}

/// What [`Load`] of this many records must be counted as, by window of a minute and key.
pub(crate) fn windows(records: u64) -> BTreeMap<(u64, String), u64> {
    let mut counts = BTreeMap::new();
    for number in 0..records {
        let begin = number / 60 * 60_000;
        *counts
            .entry((begin, format!("k{}", number % 10)))
            .or_insert(0) += 1;
    }
    counts
}

/// Two of an example share the work while one or the other is killed in the middle of it, `kills` times in all.
pub(crate) fn kill_in_turn(
    broker: &mut Broker,
    example: &str,
    args: &[&str],
    kills: usize,
) -> [Process; 2] {
    let mut one = broker.example(example, args);
    let mut other = broker.example(example, args);
    for _ in 0..kills {
        // It holds partitions and is at work.
        one.says(5);
        one.kill();
        one = other;
        other = broker.example(example, args);
    }
    one.says(5);
    other.says(5);
    [one, other]
}

/// Holds one still, in whatever it is at, until its partitions have gone to the other; then it goes on with what it had in hand.
pub(crate) fn pause(one: &mut Process, other: &mut Process) {
    let lines = |process: &Process| process.said().lines().count();
    let (of_one, of_other) = (lines(one), lines(other));
    one.signal("STOP");
    // Not until the other one has said something: it may have to wait for a lock that the first one holds.
    std::thread::sleep(PAUSE);
    one.signal("CONT");
    one.says(of_one + 5);
    other.says(of_other + 5);
}
