//! Names of the fault disk: inodes, directories with a cache and a device state, and what a power loss makes of
//! entries that were not synced.
//!
//! Entries of one directory survive independently of each other, except that both ends of a rename live or die
//! together until one of its directories is synced, as every journaling file system has it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use super::content::Content;
use super::rng::Rng;

/// Number of an inode.
pub(super) type Ino = u64;
/// The root directory, which always exists.
pub(super) const ROOT: Ino = 0;
/// Renames whose two ends are kept together; older ones fall apart, which only makes the disk meaner.
const MAX_PENDING_RENAMES: usize = 4096;

/// An entry: directory and name.
type Key = (Ino, String);

/// Entries of a directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    /// What the process sees.
    pub(super) cache: BTreeMap<String, Ino>,
    /// What a power loss leaves at least.
    dev: BTreeMap<String, Ino>,
}

/// A file or a directory.
#[derive(Clone, Debug)]
pub(super) enum Node {
    File(Box<Content>),
    Dir(Directory),
}

/// All inodes and the state of their names.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<Ino, Node>,
    /// Open handles and maps per inode.
    handles: BTreeMap<Ino, u64>,
    renames: Vec<(Key, Key)>,
    next: Ino,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, Node::Dir(Directory::default()))]),
            handles: BTreeMap::new(),
            renames: Vec::new(),
            next: ROOT + 1,
        }
    }

    /// The inode at `path` as the process sees it.
    pub(super) fn find(&self, path: &Path) -> io::Result<Ino> {
        let mut at = ROOT;
        for name in names(path)? {
            at = *self.dir(at)?.cache.get(&name).ok_or(ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// The directory that holds, or would hold, the entry at `path`, and its name there.
    pub(super) fn parent(&self, path: &Path) -> io::Result<Key> {
        let mut names = names(path)?;
        let name = names.pop().ok_or(ErrorKind::InvalidInput)?;
        let parent = self.find(&names.iter().collect::<PathBuf>())?;
        self.dir(parent)?;
        Ok((parent, name))
    }

    pub(super) fn node(&self, ino: Ino) -> io::Result<&Node> {
        self.nodes
            .get(&ino)
            .ok_or_else(|| ErrorKind::NotFound.into())
    }

    pub(super) fn dir(&self, ino: Ino) -> io::Result<&Directory> {
        match self.node(ino)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn dir_mut(&mut self, ino: Ino) -> io::Result<&mut Directory> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(ErrorKind::NotADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn file(&self, ino: Ino) -> io::Result<&Content> {
        match self.node(ino)? {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> io::Result<&mut Content> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Every file, dead ones that are still on the device included, by inode.
    pub(super) fn files_mut(&mut self) -> impl Iterator<Item = &mut Content> {
        self.nodes.values_mut().filter_map(|node| match node {
            Node::File(file) => Some(&mut **file),
            Node::Dir(_) => None,
        })
    }

    /// Sectors that files in use take: those with a name or a handle.
    pub(super) fn used_sectors(&self) -> u64 {
        let named: BTreeSet<Ino> = self.named(|dir| &dir.cache).collect();
        self.nodes
            .iter()
            .map(|(ino, node)| match node {
                Node::File(file) if named.contains(ino) || self.handles.contains_key(ino) => {
                    file.allocated.total()
                }
                _ => 0,
            })
            .sum()
    }

    /// Files with their paths as the process sees them, sorted by path.
    pub(super) fn paths(&self) -> Vec<(PathBuf, Ino)> {
        let mut found = Vec::new();
        let mut open = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, ino)) = open.pop() {
            match self.nodes.get(&ino) {
                Some(Node::Dir(dir)) => {
                    open.extend(dir.cache.iter().map(|(name, &ino)| (path.join(name), ino)));
                }
                Some(Node::File(_)) => found.push((path, ino)),
                None => {}
            }
        }
        found.sort();
        found
    }

    /// Creates an entry with a new inode.
    pub(super) fn create(&mut self, key: Key, node: Node) -> io::Result<Ino> {
        let ino = self.next;
        self.dir_mut(key.0)?.cache.insert(key.1, ino);
        self.nodes.insert(ino, node);
        self.next += 1;
        Ok(ino)
    }

    /// Removes an entry; the inode stays while a handle or the device refers to it.
    pub(super) fn remove(&mut self, key: &Key) -> io::Result<()> {
        let removed = self.dir_mut(key.0)?.cache.remove(&key.1);
        removed.map(|_| ()).ok_or(ErrorKind::NotFound.into())
    }

    /// Moves an entry, replacing what has the target's name.
    pub(super) fn rename(&mut self, from: Key, to: Key) -> io::Result<()> {
        if from == to {
            return Ok(());
        }
        self.dir(to.0)?;
        let source = &mut self.dir_mut(from.0)?.cache;
        let ino = source.remove(&from.1).ok_or(ErrorKind::NotFound)?;
        self.dir_mut(to.0)?.cache.insert(to.1.clone(), ino);
        if self.renames.len() == MAX_PENDING_RENAMES {
            self.renames.remove(0);
        }
        self.renames.push((from, to));
        Ok(())
    }

    /// Makes a directory's entries durable.
    pub(super) fn sync_dir(&mut self, ino: Ino) -> io::Result<()> {
        let dir = self.dir_mut(ino)?;
        dir.dev = dir.cache.clone();
        self.renames
            .retain(|(from, to)| from.0 != ino && to.0 != ino);
        self.collect();
        Ok(())
    }

    /// Makes an entry durable as it is now, as if another process had changed and synced it.
    pub(super) fn sync_entry(&mut self, key: &Key) -> io::Result<()> {
        self.dir_mut(key.0)?.keep(&key.1);
        self.collect();
        Ok(())
    }

    /// The crash cuts a directory sync short: entries are durable at random, the rest stays pending.
    pub(super) fn sync_dir_partly(&mut self, ino: Ino, rng: &mut Rng) {
        for group in self.pending_groups() {
            if group.iter().any(|key| key.0 == ino) && rng.chance(5) {
                self.keep_all(&group);
            }
        }
    }

    /// Power fails: pending entries are old or new, only the device's state is left. Returns how many were lost.
    pub(super) fn power_loss(&mut self, rng: &mut Rng) -> u64 {
        let mut lost = 0;
        let mut biases: BTreeMap<Ino, u64> = BTreeMap::new();
        for group in self.pending_groups() {
            let bias = *biases
                .entry(group.first().map_or(ROOT, |key| key.0))
                .or_insert_with(|| [0, 5, 10][rng.below(3) as usize]);
            if rng.chance(bias) {
                self.keep_all(&group);
            } else {
                lost += group.len() as u64;
            }
        }
        for node in self.nodes.values_mut() {
            if let Node::Dir(dir) = node {
                dir.cache = dir.dev.clone();
            }
        }
        self.renames.clear();
        self.close_all();
        lost
    }

    /// A handle or map of the inode comes to life.
    pub(super) fn opened(&mut self, ino: Ino) {
        *self.handles.entry(ino).or_insert(0) += 1;
    }

    /// A handle or map of the inode is dropped.
    pub(super) fn closed(&mut self, ino: Ino) {
        if let Some(count) = self.handles.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.handles.remove(&ino);
                if !self.named(|dir| &dir.cache).any(|named| named == ino) {
                    self.collect();
                }
            }
        }
    }

    /// The process is gone, and its handles with it.
    pub(super) fn close_all(&mut self) {
        self.handles.clear();
        self.collect();
    }

    /// Feeds everything that later behaviour depends on, handles excepted.
    pub(super) fn hash(&self, feed: &mut impl FnMut(&[u8])) {
        for (ino, node) in &self.nodes {
            feed(&ino.to_le_bytes());
            match node {
                Node::File(file) => file.hash(feed),
                Node::Dir(dir) => {
                    for names in [&dir.cache, &dir.dev] {
                        feed(&(names.len() as u64).to_le_bytes());
                        for (name, ino) in names {
                            feed(name.as_bytes());
                            feed(&ino.to_le_bytes());
                        }
                    }
                }
            }
        }
    }

    fn named<'a>(
        &'a self,
        state: impl Fn(&'a Directory) -> &'a BTreeMap<String, Ino> + 'a,
    ) -> impl Iterator<Item = Ino> + 'a {
        self.nodes.values().flat_map(move |node| match node {
            Node::Dir(dir) => state(dir).values().copied().collect(),
            Node::File(_) => Vec::new(),
        })
    }

    /// Entries whose cache and device state differ, those bound by a rename together; in the order of the keys.
    fn pending_groups(&self) -> Vec<Vec<Key>> {
        let mut groups: Vec<Vec<Key>> = Vec::new();
        let mut group_of: BTreeMap<Key, usize> = BTreeMap::new();
        for (&ino, node) in &self.nodes {
            let Node::Dir(dir) = node else { continue };
            for name in dir.pending() {
                group_of.insert((ino, name.clone()), groups.len());
                groups.push(vec![(ino, name)]);
            }
        }
        for (from, to) in &self.renames {
            let (Some(&a), Some(&b)) = (group_of.get(from), group_of.get(to)) else {
                continue;
            };
            if a != b {
                let moved = std::mem::take(&mut groups[b]);
                for key in &moved {
                    group_of.insert(key.clone(), a);
                }
                groups[a].extend(moved);
            }
        }
        groups.retain(|group| !group.is_empty());
        groups
    }

    fn keep_all(&mut self, group: &[Key]) {
        for (ino, name) in group {
            if let Some(Node::Dir(dir)) = self.nodes.get_mut(ino) {
                dir.keep(name);
            }
        }
    }

    /// Frees inodes that nothing refers to. Freeing a directory frees what only it held.
    fn collect(&mut self) {
        let mut live: BTreeSet<Ino> = self.handles.keys().copied().collect();
        let mut open: Vec<Ino> = live.iter().copied().chain([ROOT]).collect();
        live.insert(ROOT);
        while let Some(ino) = open.pop() {
            if let Some(Node::Dir(dir)) = self.nodes.get(&ino) {
                for &inner in dir.cache.values().chain(dir.dev.values()) {
                    if live.insert(inner) {
                        open.push(inner);
                    }
                }
            }
        }
        self.nodes.retain(|ino, _| live.contains(ino));
    }
}

impl Directory {
    /// Names whose entry is not durable as the process sees it.
    fn pending(&self) -> BTreeSet<String> {
        self.cache
            .keys()
            .chain(self.dev.keys())
            .filter(|name| self.cache.get(*name) != self.dev.get(*name))
            .cloned()
            .collect()
    }

    /// Brings one entry to the device.
    fn keep(&mut self, name: &str) {
        match self.cache.get(name) {
            Some(&ino) => self.dev.insert(name.to_owned(), ino),
            None => self.dev.remove(name),
        };
    }
}

/// The names of a path from the root; relative paths start there too.
fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                let name = name.to_str().ok_or(ErrorKind::InvalidInput)?;
                names.push(name.to_owned());
            }
            Component::ParentDir | Component::Prefix(_) => {
                return Err(ErrorKind::InvalidInput.into());
            }
        }
    }
    Ok(names)
}
