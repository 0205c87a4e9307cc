//! What members want to read, and which topics that is now.
//!
//! A pattern is compiled within bounds of length, nesting and size, matched against all names in time linear in them (the
//! `regex` crate never backtracks), and dropped: what it matched is kept.

use std::collections::HashMap;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use super::error::Error;
use super::limits;
use super::parts::TopicId;
use super::topics::Topics;

/// Topics by name, a pattern, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Subscription {
    /// In order, each once.
    pub(crate) topics: Vec<Arc<str>>,
    pub(crate) pattern: Option<Arc<str>>,
}

impl Subscription {
    /// # Errors
    /// An empty or too long subscription, and a pattern that is none or would cost too much.
    pub(crate) fn new(topics: Vec<String>, pattern: Option<String>) -> Result<Subscription, Error> {
        let pattern = pattern.filter(|pattern| !pattern.is_empty());
        if topics.is_empty() && pattern.is_none() {
            let why = "a subscription names topics, or has a pattern";
            return Err(Error::invalid("subscription", why));
        }
        if topics.len() > limits::TOPICS_NAMED_MAX {
            let why = format!("at most {} topics", limits::TOPICS_NAMED_MAX);
            return Err(Error::invalid("subscription.topics", why));
        }
        let wrong = |name: &&String| name.is_empty() || name.len() > limits::ID_LEN_MAX;
        if topics.iter().find(wrong).is_some() {
            let why = format!("a topic's name has 1 to {} bytes", limits::ID_LEN_MAX);
            return Err(Error::invalid("subscription.topics", why));
        }
        if let Some(pattern) = &pattern {
            compile(pattern)?;
        }
        Ok(Subscription::trusted(topics, pattern))
    }

    /// One that was checked before it was written.
    pub(crate) fn trusted(topics: Vec<String>, pattern: Option<String>) -> Subscription {
        let mut topics: Vec<Arc<str>> = topics.into_iter().map(Arc::from).collect();
        topics.sort_unstable();
        topics.dedup();
        Subscription {
            topics,
            pattern: pattern.map(Arc::from),
        }
    }
}

fn compile(pattern: &str) -> Result<Regex, Error> {
    if pattern.len() > limits::PATTERN_LEN_MAX {
        let why = format!("it has more than {} bytes", limits::PATTERN_LEN_MAX);
        return Err(Error::InvalidPattern(why));
    }
    let build = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(limits::PATTERN_SIZE_MAX)
            .dfa_size_limit(limits::PATTERN_SIZE_MAX)
            .nest_limit(limits::PATTERN_NEST_MAX)
            .build()
            .map_err(|error| {
                let why: String = error.to_string().chars().take(300).collect();
                Error::InvalidPattern(why)
            })
    };
    // By itself first: parentheses that are not closed must not close those around it.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z"))
}

/// The patterns of one group's members, and what they match.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    /// Bounded by [`limits::PATTERNS_MAX`].
    matched: HashMap<Arc<str>, Arc<[TopicId]>>,
    /// Revision that the matches are of.
    revision: Option<u64>,
}

impl Patterns {
    /// Whether one more member may come with this pattern.
    ///
    /// # Errors
    /// Too many different ones.
    pub(crate) fn admit(&self, subscription: &Subscription) -> Result<(), Error> {
        let Some(pattern) = &subscription.pattern else {
            return Ok(());
        };
        if self.matched.len() >= limits::PATTERNS_MAX && !self.matched.contains_key(pattern) {
            return Err(Error::InvalidPattern(format!(
                "the group's members have {} different patterns already",
                self.matched.len()
            )));
        }
        Ok(())
    }

    /// Matches what is not matched yet at this revision, and forgets what nobody has any more.
    pub(crate) fn refresh<'a>(
        &mut self,
        topics: &Topics,
        subscriptions: impl Iterator<Item = &'a Subscription>,
    ) {
        let mut before = std::mem::take(&mut self.matched);
        if self.revision != Some(topics.revision) {
            before.clear();
            self.revision = Some(topics.revision);
        }
        for subscription in subscriptions {
            let Some(pattern) = &subscription.pattern else {
                continue;
            };
            if !self.matched.contains_key(pattern) {
                let known = before.remove(pattern);
                let matched = known.unwrap_or_else(|| matching(pattern, topics));
                self.matched.insert(Arc::clone(pattern), matched);
            }
        }
    }

    /// Topics of a subscription, in order, each once; those that do not exist are left out.
    pub(crate) fn resolve(&self, subscription: &Subscription, topics: &Topics) -> Vec<TopicId> {
        let named = subscription.topics.iter();
        let named = named.filter_map(|name| topics.named(name));
        let named = named.filter(|topic| !topic.internal).map(|topic| topic.id);
        let matched = subscription.pattern.as_ref();
        let matched = matched.and_then(|pattern| self.matched.get(pattern));
        let mut all: Vec<TopicId> = named
            .chain(matched.into_iter().flat_map(|ids| ids.iter().copied()))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn matching(pattern: &str, topics: &Topics) -> Arc<[TopicId]> {
    // It was accepted when its member came; bounds that have shrunk since make it match nothing.
    let Ok(regex) = compile(pattern) else {
        return Arc::default();
    };
    let matched = topics
        .all()
        .filter(|topic| !topic.internal && regex.is_match(&topic.name))
        .map(|topic| topic.id);
    matched.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::topics::TopicView;

    fn topics(names: &[&str]) -> Topics {
        let mut topics = Topics::new(1);
        for (at, name) in names.iter().enumerate() {
            topics.insert(TopicView {
                id: TopicId(at as u128),
                name: Arc::from(*name),
                internal: name.starts_with("__"),
                racks: vec![Box::default()],
            });
        }
        topics
    }

    #[test]
    fn a_pattern_matches_whole_names_and_no_internal_ones() {
        let topics = topics(&["orders", "orders.eu", "__groups", "xorders"]);
        let resolve = |pattern: &str| {
            let subscription = Subscription::new(vec![], Some(pattern.to_owned())).unwrap();
            let mut patterns = Patterns::default();
            patterns.refresh(&topics, std::iter::once(&subscription));
            let found = patterns.resolve(&subscription, &topics);
            found.iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(resolve("orders"), [0]);
        assert_eq!(resolve("orders.*"), [0, 1]);
        assert_eq!(resolve(".*"), [0, 1, 3]);
        assert_eq!(resolve("orders|xorders"), [0, 3]);
        assert!(resolve("nothing").is_empty());
    }

    #[test]
    fn hostile_patterns_are_refused() {
        let deep = format!("{}a{}", "(".repeat(100), ")".repeat(100));
        for pattern in [
            "(",
            "a)(b",
            "(a{1000}){1000}",
            r"\w{1000}{100}",
            "*",
            &"a".repeat(2000),
            &deep,
        ] {
            let refused = Subscription::new(vec![], Some(pattern.to_owned()));
            assert!(
                matches!(refused, Err(Error::InvalidPattern(_))),
                "{pattern:.20}"
            );
        }
        let empty = Subscription::new(vec![], Some(String::new()));
        assert!(matches!(empty, Err(Error::Invalid { .. })));
    }
}
