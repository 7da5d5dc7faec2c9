//! `app` and `app/process`, as they are typed. Whether a name is a legal name is for the node to say; here only the shape counts.

use crate::failure::Failure;

/// An application, or one process of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) app: String,
    pub(crate) process: Option<String>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessTarget {
    pub(crate) app: String,
    pub(crate) process: String,
}

impl Target {
    pub(crate) fn parse(text: &str) -> Result<Target, Failure> {
        let (app, process) = match text.split_once('/') {
            Some((app, process)) => (app, Some(process)),
            None => (text, None),
        };
        let bad =
            app.is_empty() || process.is_some_and(|process| process.is_empty() || process.contains('/'));
        if bad {
            return Err(Failure::usage(format!("`{text}` names neither an application nor a process"))
                .remedy("write app or app/process, as in counter/alice"));
        }
        Ok(Target { app: app.to_owned(), process: process.map(str::to_owned) })
    }
}

impl ProcessTarget {
    pub(crate) fn parse(text: &str) -> Result<ProcessTarget, Failure> {
        match Target::parse(text)? {
            Target { app, process: Some(process) } => Ok(ProcessTarget { app, process }),
            Target { app, process: None } => {
                Err(Failure::usage(format!("`{text}` names an application, not a process"))
                    .remedy(format!("write app/process; `denizen ps {app}` lists them")))
            }
        }
    }
}

impl std::fmt::Display for ProcessTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.app, self.process)
    }
}

#[cfg(test)]
mod tests {
    use super::{ProcessTarget, Target};

    #[test]
    fn shapes() {
        assert_eq!(Target::parse("counter").unwrap().process, None);
        assert_eq!(ProcessTarget::parse("counter/alice").unwrap().to_string(), "counter/alice");
        for bad in ["", "/", "a/", "/b", "a/b/c"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
        assert!(ProcessTarget::parse("counter").is_err());
    }
}
