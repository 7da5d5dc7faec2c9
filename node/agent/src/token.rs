//! The token that changing calls need: who can read `DIR/token` may change the node.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Random bytes in a token.
const BYTES: usize = 32;

/// The secret of this node's directory.
pub(crate) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Reads the token at `path`, or makes one that only its owner can read.
    pub(crate) fn open(path: &Path) -> io::Result<Token> {
        match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => return Ok(Token(text.trim().to_owned())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // An empty file is what a crash between its creation and its content leaves.
            _ => {}
        }
        let token = Token(random_hex::<BYTES>()?);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        writeln!(file, "{}", token.0)?;
        file.sync_all()?;
        Ok(token)
    }

    /// Whether an `Authorization` header carries it. Takes the same time wherever the first difference is.
    pub(crate) fn is_in(&self, authorization: Option<&[u8]>) -> bool {
        let Some(given) = authorization.and_then(bearer) else { return false };
        let ours = self.0.as_bytes();
        let differences = given.iter().zip(ours).fold(0_u8, |all, (a, b)| all | (a ^ b));
        // The length is no secret.
        given.len() == ours.len() && std::hint::black_box(differences) == 0
    }
}

/// The scheme's name is case-insensitive (RFC 9110).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

/// `N` random bytes from the kernel, as hexadecimal digits.
pub(crate) fn random_hex<const N: usize>() -> io::Result<String> {
    use std::fmt::Write;
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::with_capacity(2 * N), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let first = Token::open(&path).unwrap();
        assert_eq!(first.0.len(), 2 * BYTES);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Token::open(&path).unwrap().0, first.0, "a second start keeps it");
    }

    #[test]
    fn only_the_whole_token_opens() {
        let token = Token("secret".to_owned());
        assert!(token.is_in(Some(b"Bearer secret")));
        assert!(token.is_in(Some(b"bearer  secret")));
        for header in [
            None,
            Some(&b"Bearer secre"[..]),
            Some(b"Bearer secrets"),
            Some(b"Bearer "),
            Some(b""),
            Some(b"Basic secret"),
            Some(b"secret"),
        ] {
            assert!(!token.is_in(header), "{header:?}");
        }
    }
}
