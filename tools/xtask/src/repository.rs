//! The checkout that this program was built in, seen through git: what is tracked, and what is new and not ignored.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The repository's root directory.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    root: PathBuf,
}

impl Repository {
    /// Two directories above this crate.
    pub(crate) fn around_this_crate() -> Repository {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        Repository { root: root.canonicalize().unwrap_or(root) }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Paths of all files that belong to the repository, relative to its root; deleted ones left out.
    pub(crate) fn files(&self) -> Result<Vec<String>, String> {
        let list = self.git(&["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
        let mut files: Vec<String> =
            list.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
        files.sort();
        files.dedup();
        files.retain(|path| self.root.join(path).is_file());
        Ok(files)
    }

    /// What git prints; an error if it fails.
    pub(crate) fn git(&self, arguments: &[&str]) -> Result<String, String> {
        output(self.git_command().args(arguments))
    }

    /// The cargo that runs this program.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        cargo
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target_dir(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
    }

    pub(crate) fn git_command(&self) -> Command {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.root);
        git
    }
}

/// What a program prints; an error with its own words if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?} cannot be run: {error}"))?;
    if output.status.success() {
        return String::from_utf8(output.stdout)
            .map_err(|_| format!("{command:?} printed something that is not UTF-8"));
    }
    Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr).trim_end()))
}
