//! The tour in the README: each command of its `console` blocks is run, and prints what the page shows.
//!
//! What no two runs have in common is not compared: process ids, times, spans, who leads, sizes. Nor is the order of records of
//! different partitions. Ports and directory are put in the place of the page's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::dev::base_port;
use crate::harness::{binary, run};

/// A command of the page, and the lines below it.
#[derive(Debug, Default)]
struct Step {
    command: String,
    shown: String,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step {
                    command: command.to_owned(),
                    shown: String::new(),
                }),
                (None, Some(step)) => step.shown += &format!("{line}\n"),
                (None, None) => panic!("output without a command: {line}"),
            }
        }
    }
    steps
}

/// What a line says in every run.
fn constant(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    // A broker's row in a status; the star is the controller's.
    let is_row = words.contains(&"running");
    if is_row {
        words.retain(|&word| word != "*");
    }
    let is_loose = is_row || matches!(words.first(), Some(&("controller" | "checked")));
    let varies = |at: usize| {
        let word = words[at];
        let is_number = word.parse::<f64>().is_ok();
        let unit = words
            .get(at + 1)
            .map(|next| next.trim_end_matches([',', ';']));
        let is_counted = unit == Some("ms");
        let is_process = at > 0 && words[at - 1] == "process";
        is_time(word)
            || is_span(word)
            || (at > 0 && words[0] == "directory")
            || (is_number && at > 0 && (is_loose || is_counted || is_process))
    };
    let constant = (0..words.len()).map(|at| if varies(at) { "…" } else { words[at] });
    constant.collect::<Vec<_>>().join(" ")
}

/// As in 2026-11-27T00:15:28.975Z.
fn is_time(word: &str) -> bool {
    let shape = |letter: char| if letter.is_ascii_digit() { '0' } else { letter };
    word.chars()
        .map(shape)
        .eq("0000-00-00T00:00:00.000Z".chars())
}

/// As in 8ms, 1m3s.
fn is_span(word: &str) -> bool {
    let is_span = |letter: char| letter.is_ascii_digit() || "hms".contains(letter);
    word.starts_with(|first: char| first.is_ascii_digit())
        && word.ends_with(['h', 'm', 's'])
        && word.chars().all(is_span)
}

fn constants(command: &str, text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.trim_end().lines().map(constant).collect();
    if command.contains("consume") {
        // Stable: the order within a partition is compared.
        let partition = |line: &String| line.split('/').next().map(str::to_owned);
        lines.sort_by_key(partition);
    }
    lines
}

struct Tour {
    home: PathBuf,
    base: u16,
    /// As `export` said.
    exported: BTreeMap<String, String>,
    _dir: TempDir,
}

impl Tour {
    fn new() -> Tour {
        let dir = TempDir::new().unwrap();
        Tour {
            home: dir.path().canonicalize().unwrap(),
            base: base_port(),
            exported: BTreeMap::new(),
            _dir: dir,
        }
    }

    /// The page with this run's ports and directory.
    fn here(&self, page: &str) -> String {
        let mut page = page.replace("/home/you", self.home.to_str().unwrap());
        for at in (0..3).flat_map(|broker| (0..3).map(move |port| 10 * broker + port)) {
            let (shown, real) = (7071 + at, self.base + at);
            page = page.replace(&format!("127.0.0.1:{shown}"), &format!("127.0.0.1:{real}"));
        }
        page
    }

    fn shell(&self, command: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_timberline"));
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("sh");
        // Both of its outputs, in the order in which they come.
        shell.arg("-c").arg(format!("exec 2>&1\n{command}"));
        shell.current_dir(&self.home);
        for (name, _) in binary().get_envs() {
            shell.env_remove(name);
        }
        shell
            .env(
                "PATH",
                format!("{}:{path}", program.parent().unwrap().display()),
            )
            .env("XDG_STATE_HOME", self.home.join("state"))
            .envs(&self.exported);
        shell
    }

    fn take(&mut self, step: &Step) {
        if let Some(variable) = step.command.strip_prefix("export ") {
            let (name, value) = variable.split_once('=').unwrap();
            self.exported.insert(name.to_owned(), value.to_owned());
            return;
        }
        let mut command = step.command.clone();
        if command.starts_with("timberline dev up") {
            command += &format!(" --base-port {}", self.base);
        }
        let ran = run(self.shell(&command), b"");
        assert_eq!(
            constants(&command, &ran.out),
            constants(&command, &step.shown),
            "`{}` prints (left) something else than the README shows (right):\n{}",
            step.command,
            ran.out
        );
    }
}

impl Drop for Tour {
    fn drop(&mut self) {
        let _ = self.shell("timberline dev down").output();
    }
}

#[test]
fn the_tour_in_the_readme_is_true() {
    let page = include_str!("../../../../README.md");
    let mut tour = Tour::new();
    let steps = steps(&tour.here(page));
    // Not less than a tour: up, topic, produce, group, lag, kill, down.
    assert!(steps.len() > 10, "{steps:?}");
    for step in &steps {
        tour.take(step);
    }
}

#[test]
fn what_varies_is_all_that_is_let_pass() {
    let same = [
        ("killed broker 1, process 12", "killed broker 1, process 7"),
        (
            "hello 0 1 3 2 8ms 2026-11-27T00:15:28.975Z -",
            "hello 0 1 3 2 1m3s 2027-01-01T01:01:01.001Z -",
        ),
        ("1 * a running 12 1 3 0 x", "1 a running 7 2 3 1 x"),
        (
            "3 brokers are up after 355 ms; logs",
            "3 brokers are up after 7 ms; logs",
        ),
    ];
    for (one, other) in same {
        assert_eq!(constant(one), constant(other));
    }
    let different = [
        ("killed broker 1, process 12", "killed broker 2, process 12"),
        ("hello 0 1 3 2 8ms -", "hello 0 1 3 3 8ms -"),
        ("0/0 bob signed up", "0/1 bob signed up"),
    ];
    for (one, other) in different {
        assert_ne!(constant(one), constant(other));
    }
    let shown = constants("timberline consume t", "1/0 a\n0/0 b\n1/1 c\n");
    assert_eq!(
        shown,
        constants("timberline consume t", "0/0 b\n1/0 a\n1/1 c\n")
    );
    assert_ne!(
        shown,
        constants("timberline consume t", "0/0 b\n1/1 c\n1/0 a\n")
    );
}
