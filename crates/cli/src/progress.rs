//! Progress of long work: on a terminal only, on standard error only.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

/// How often it is drawn anew.
const EVERY: Duration = Duration::from_millis(100);

/// A line that is redrawn until this is dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    task: Option<JoinHandle<()>>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Records,
}

impl Progress {
    /// Draws `count()` of `total`, if that is known, when standard error is a terminal.
    pub(crate) fn start(
        what: &str,
        unit: Unit,
        total: Option<u64>,
        count: impl Fn() -> u64 + Send + 'static,
    ) -> Progress {
        if !stderr().is_terminal() {
            return Progress {
                bar: ProgressBar::hidden(),
                task: None,
            };
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = match (unit, total) {
            (Unit::Bytes, Some(_)) => {
                "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
            }
            (Unit::Bytes, None) => "{prefix} {binary_bytes} {binary_bytes_per_sec}",
            (Unit::Records, Some(_)) => {
                "{prefix} {wide_bar} {human_pos}/{human_len} records {per_sec} {eta}"
            }
            (Unit::Records, None) => "{prefix} {human_pos} records {per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        let drawn = bar.clone();
        let task = tokio::spawn(async move {
            loop {
                drawn.set_position(count());
                tokio::time::sleep(EVERY).await;
            }
        });
        Progress {
            bar,
            task: Some(task),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}
