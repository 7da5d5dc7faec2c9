//! Links of one page to files and headings of the repository.

use std::collections::BTreeSet;

/// The links in `text` that lead nowhere, with the lines (from 1) that they stand on. `known` are the repository's files.
pub(crate) fn dead(file: &str, text: &str, known: &BTreeSet<&str>) -> Vec<(usize, String)> {
    let own_headings = headings(text);
    let mut dead = Vec::new();
    for (line, link) in links(text) {
        let alive = match link.split_once('#') {
            Some(("", heading)) => own_headings.contains(heading),
            Some((path, _)) => leads_somewhere(file, path, known),
            None => leads_somewhere(file, &link, known),
        };
        if !alive {
            dead.push((line, link));
        }
    }
    dead
}

/// Targets of `[text](target)` outside code, those to other places left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (at, _) in prose.match_indices("](") {
            let rest = &prose[at + 2..];
            let Some(target) = rest.find(')').map(|end| rest[..end].trim()) else { continue };
            let target = target.split_whitespace().next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !elsewhere {
                found.push((number, target.to_owned()));
            }
        }
    }
    found
}

fn leads_somewhere(from: &str, path: &str, known: &BTreeSet<&str>) -> bool {
    let Some(path) = resolve(from, path) else { return false };
    let dir = format!("{path}/");
    path.is_empty() || known.contains(path.as_str()) || known.iter().any(|file| file.starts_with(&dir))
}

/// `path` as seen from `from`, relative to the root; `None` if it leads out of the repository.
fn resolve(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    if path.starts_with('/') {
        return None;
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Names of the headings, as code hosts make them: lower case, blanks to dashes, all but letters, digits, `-` and `_` left out.
fn headings(text: &str) -> BTreeSet<String> {
    let heads =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    heads
        .map(|head| {
            let kept = head.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::dead;

    #[test]
    fn links_are_followed() {
        let known = BTreeSet::from(["README.md", "docs/a.md", "docs/deep/b.md"]);
        let text = "# A head, `with` code\n[1](a.md) [2](../README.md#x) [3](deep) [4](#a-head-with-code)\n\
            [5](https://x.y/z) `[6](gone)` [7](gone.md) [8](../../out.md) [9](#none) [10](/docs/a.md)\n```\n[11](gone)\n```\n";
        let dead: Vec<String> = dead("docs/a.md", text, &known)
            .into_iter()
            .map(|(line, link)| format!("{line} {link}"))
            .collect();
        assert_eq!(dead, ["3 gone.md", "3 ../../out.md", "3 #none", "3 /docs/a.md"]);
    }
}
