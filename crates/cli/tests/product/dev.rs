//! A cluster on this machine, by its commands.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Ran, binary, finish, run, signal, wait_for};

/// Ports for a cluster of a few brokers, below those that the system gives to clients; others for each test.
pub(crate) fn base_port() -> u16 {
    static TESTS: AtomicUsize = AtomicUsize::new(0);
    let turn = std::process::id() as usize + 97 * TESTS.fetch_add(1, Ordering::Relaxed);
    let mut ports = (15_000..31_000).step_by(50).cycle().skip(turn % 320);
    let is_free =
        |port: &u16| (0..23).all(|at| TcpListener::bind(("127.0.0.1", port + at)).is_ok());
    ports.find(is_free).unwrap()
}

struct Dev {
    dir: TempDir,
    base: String,
}

impl Dev {
    fn new() -> Dev {
        Dev {
            dir: TempDir::new().unwrap(),
            base: base_port().to_string(),
        }
    }

    fn home(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        command
            .arg("dev")
            .args(args)
            .current_dir(self.home())
            .env("XDG_STATE_HOME", self.home().join("state"));
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(self.command(args), b"")
    }

    fn up(&self) -> Ran {
        self.run(&[
            "up",
            "--brokers",
            "1",
            "--detach",
            "--dir",
            "elsewhere",
            "--base-port",
            &self.base,
        ])
    }

    fn broker(&self) -> Value {
        self.run(&["status", "-o", "json"]).ok().json()["brokers"][0].clone()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self
            .command(&["down"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn a_broker_is_killed_paused_resumed_and_started_again() {
    let dev = Dev::new();
    dev.run(&["status"])
        .fails(1, &["there is no cluster", "timberline dev up"]);
    let up = dev.up().ok();
    assert!(
        up.out
            .contains(&format!("bootstrap  127.0.0.1:{}", dev.base)),
        "{}",
        up.out
    );
    let export = format!("export TIMBERLINE_BOOTSTRAP=127.0.0.1:{}", dev.base);
    assert!(up.out.contains(&export), "{}", up.out);
    let first = dev.broker();
    assert_eq!(
        (&first["id"], &first["state"]),
        (&1.into(), &"running".into())
    );
    dev.up().fails(1, &["is running", "dev down"]);
    dev.run(&["kill", "2"]).fails(2, &["there is no broker 2"]);
    dev.run(&["kill", "1"]).ok();
    let dead = dev.broker();
    assert_eq!(
        (&dead["pid"], &dead["state"]),
        (&Value::Null, &"down".into())
    );
    dev.run(&["kill", "1"])
        .fails(1, &["is down", "dev restart 1"]);
    dev.run(&["restart", "1"]).ok();
    dev.run(&["pause", "1"]).ok();
    wait_for("the pause", || {
        (dev.broker()["state"] == "paused").then_some(())
    });
    dev.run(&["resume", "1"]).ok();
    wait_for("the end of the pause", || {
        (dev.broker()["state"] == "running").then_some(())
    });
    let second = dev.broker();
    assert_ne!(first["pid"], second["pid"]);
    // A paused one is ended too.
    dev.run(&["pause", "1"]).ok();
    dev.run(&["down"]).ok();
    assert_eq!(dev.broker()["state"], "down");
    // What was there is gone on with, and nothing else.
    dev.run(&["up", "--brokers", "2", "--dir", "elsewhere"])
        .fails(1, &["holds a cluster of 1 broker in"]);
    dev.run(&["up", "--detach", "--dir", "elsewhere"]).ok();
    assert_eq!(dev.broker()["grpc"], first["grpc"]);
}

#[test]
fn a_port_in_use_is_named() {
    let dev = Dev::new();
    let _held = TcpListener::bind(format!("127.0.0.1:{}", dev.base)).unwrap();
    dev.up().fails(
        1,
        &[
            &dev.base,
            "broker 1",
            "in use",
            "--base-port",
            "ADDRESS_IN_USE",
        ],
    );
}

#[test]
fn in_the_foreground_a_signal_brings_it_down() {
    let dev = Dev::new();
    let up = dev
        .command(&["up", "--brokers", "1", "--base-port", &dev.base])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the broker", || {
        let status = dev.run(&["status", "-o", "json"]);
        (status.code == 0 && status.json()["brokers"][0]["state"] == "running").then_some(())
    });
    signal(up.id(), Signal::INT);
    let ran = finish(up);
    assert!(
        ran.code == 0 || ran.err.contains("interrupted"),
        "{}{}",
        ran.out,
        ran.err
    );
    wait_for("its end", || {
        (dev.broker()["state"] == "down").then_some(())
    });
}
