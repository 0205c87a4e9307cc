//! Texts made from the declaration of the keys: the reference page, the commented default file, `explain`.

use std::fmt::Write;

use super::schema::{self, Key};

/// The configuration reference as Markdown; `docs/configuration.md` is this text.
pub fn reference_markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         Made from the types in `crates/broker/src/config`; do not edit by hand. `cargo test -p timberline-broker` fails when it drifts, \
         and writes it anew with `UPDATE_DOCS=1`.\n\n\
         A TOML file (`--config FILE`), over it environment variables (`TIMBERLINE_SECTION__KEY`), over them flags. A key that does not exist, or a \
         value out of range, is an error at start. Sizes and spans carry their unit: `\"64MiB\"`, `\"250ms\"`.\n",
    );
    for (section, about) in schema::sections() {
        let _ = writeln!(page, "\n## `[{section}]`\n\n{about}\n");
        page.push_str("| key | kind | default | range | what it does |\n|---|---|---|---|---|\n");
        for key in schema::keys().iter().filter(|key| key.section == section) {
            let range = key
                .range
                .as_ref()
                .map_or_else(String::new, |(low, high)| format!("`{low}` to `{high}`"));
            let _ = writeln!(
                page,
                "| `{}` | {} | `{}` | {range} | {} |",
                key.name, key.kind, key.default, key.documentation
            );
        }
    }
    page
}

/// A configuration file with every key at its default, commented; `config/timberline.toml` is this text.
pub fn default_file() -> String {
    let mut file = String::from(
        "# Every key with its default. A broker needs none of them.\n\
         # The reference is docs/configuration.md; `timberline explain SECTION.KEY` says what a key does.\n",
    );
    for (section, about) in schema::sections() {
        let _ = writeln!(file, "\n# {about}\n[{section}]");
        for key in schema::keys().iter().filter(|key| key.section == section) {
            let _ = writeln!(
                file,
                "# {}\n{} = {}",
                key.documentation, key.name, key.default
            );
        }
    }
    file
}

/// The keys of topics' configurations, and what each does.
pub fn topic_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    let keys = crate::topic::config::KEYS.iter();
    keys.map(|key| (key.name, key.documentation))
}

/// What a key does, for a terminal. `None` if there is no such key; `section.key` and `key` alone are understood.
pub fn explain(name: &str) -> Option<String> {
    let keys = schema::keys();
    let key: &Key = keys
        .iter()
        .find(|key| key.path() == name || key.environment() == name)
        .or_else(|| keys.iter().find(|key| key.name == name))?;
    let mut text = format!("{}\n  {}\n\n", key.path(), key.documentation);
    let _ = writeln!(text, "  kind         {}", key.kind);
    let _ = writeln!(text, "  default      {}", key.default);
    if let Some((low, high)) = &key.range {
        let _ = writeln!(text, "  range        {low} to {high}");
    }
    let _ = writeln!(text, "  environment  {}", key.environment());
    Some(text)
}
