//! Which dev cluster was started last, so that the other commands need no `--dir`.
//!
//! A line in the user's state directory; without one, or with a line that is wrong, nothing is lost but that comfort.

use std::fs;
use std::path::{Path, PathBuf};

use super::state::read;

/// Notes that the cluster in this directory was started.
pub(super) fn remember(dir: &Path) {
    let Some(path) = note() else { return };
    if let Some(parent) = path.parent() {
        let _ = fs::create_dir_all(parent);
    }
    let _ = fs::write(path, dir.as_os_str().as_encoded_bytes());
}

/// The directory that is meant by none: the default one if it holds a cluster, otherwise that of the last start.
pub(super) fn find(default: &Path) -> PathBuf {
    let held = |dir: &Path| matches!(read(dir), Ok(Some(_)));
    if held(default) {
        return default.to_owned();
    }
    let noted = note().and_then(|path| fs::read_to_string(path).ok());
    let noted = noted.map(PathBuf::from).filter(|dir| held(dir));
    noted.unwrap_or_else(|| default.to_owned())
}

fn note() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = match set("XDG_STATE_HOME") {
        Some(state) => PathBuf::from(state),
        None => PathBuf::from(set("HOME")?).join(".local/state"),
    };
    Some(state.join("timberline").join("dev-cluster"))
}
