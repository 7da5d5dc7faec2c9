//! Spells request paths. A name that is not a legal name is encoded all the same: the node is the one judge of names, and says
//! what is wrong with one in its own words.

use std::fmt::Write as _;

/// Joins `segments` into an absolute path, each percent-encoded so that none can reach into its neighbour.
pub(crate) fn of(segments: &[&str]) -> String {
    let mut path = String::new();
    for segment in segments {
        path.push('/');
        encode_into(&mut path, segment);
    }
    path
}

/// Appends `text` with everything but RFC 3986's unreserved characters percent-encoded.
pub(crate) fn encode_into(out: &mut String, text: &str) {
    encode_bytes_into(out, text.as_bytes());
}

/// As [`encode_into`], for what need not be text.
pub(crate) fn encode_bytes_into(out: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn plain_names_stay_readable() {
        assert_eq!(of(&["v1", "apps", "my-app_1.0"]), "/v1/apps/my-app_1.0");
    }

    #[test]
    fn a_name_cannot_leave_its_segment() {
        assert_eq!(of(&["v1", "a/b?c#d"]), "/v1/a%2Fb%3Fc%23d");
        assert_eq!(of(&["é\0\n"]), "/%C3%A9%00%0A");
    }
}
