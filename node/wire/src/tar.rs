//! Captured files as a tar archive: what export writes, for any program that reads tar. No I/O.
//!
//! The old GNU form, which every reader knows: a path over 100 bytes goes in a record of its own before the entry, a length over 8 GiB
//! in binary. Directories and plain files are all there is; they belong to user and group 0, because the host keeps no owners.

/// Everything in an archive begins at a multiple of this many bytes.
pub const BLOCK: usize = 512;
const NAME_LEN: usize = 100;
/// What stands in place of the name of an entry whose name comes before it.
const LONG_NAME: &[u8] = b"././@LongLink";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A file of so many bytes: they follow, and then [`padding`].
    File(u64),
}

/// Appends the head of an entry. `path` is relative; `mode` are permission bits; what was modified before 1970 counts as of then.
pub fn head(out: &mut Vec<u8>, path: &[u8], mode: u32, modified_s: i64, entry: Entry) {
    let (kind, len, mut name) = match entry {
        Entry::Directory => (b'5', 0, path.to_vec()),
        Entry::File(len) => (b'0', len, path.to_vec()),
    };
    if entry == Entry::Directory {
        name.push(b'/');
    }
    if name.len() > NAME_LEN {
        let with_zero = [&name[..], &[0]].concat();
        block(out, LONG_NAME, b'L', with_zero.len() as u64, 0, 0);
        out.extend_from_slice(&with_zero);
        out.resize(out.len() + padding(with_zero.len() as u64), 0);
    }
    let cut = &name[..name.len().min(NAME_LEN)];
    block(out, cut, kind, len, mode, u64::try_from(modified_s).unwrap_or(0));
}

/// Zeros that follow the bytes of a file of this length.
pub fn padding(len: u64) -> usize {
    // Less than a block.
    usize::try_from(len.next_multiple_of(BLOCK as u64) - len).unwrap_or(0)
}

/// Appends the end of the archive.
pub fn end(out: &mut Vec<u8>) {
    out.resize(out.len() + 2 * BLOCK, 0);
}

fn block(out: &mut Vec<u8>, name: &[u8], kind: u8, len: u64, mode: u32, modified_s: u64) {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    number(&mut block[100..108], u64::from(mode));
    number(&mut block[108..116], 0);
    number(&mut block[116..124], 0);
    number(&mut block[124..136], len);
    number(&mut block[136..148], modified_s);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar  \0");
    // The sum is taken with spaces in its own place.
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    number(&mut block[148..155], sum);
    out.extend_from_slice(&block);
}

/// Octal digits and a zero; where they do not suffice, binary with the top bit set.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value < 1 << (3 * digits).min(63) {
        field.copy_from_slice(format!("{value:0digits$o}\0").as_bytes());
        return;
    }
    let (front, back) = field.split_at_mut(field.len() - 8);
    front.fill(0);
    front[0] = 0x80;
    back.copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
    }

    #[test]
    fn an_entry_is_as_tar_reads_it() {
        let mut out = Vec::new();
        head(&mut out, b"a/one", 0o640, 1_700_000_000, Entry::File(5));
        assert_eq!(out.len(), BLOCK);
        assert_eq!((text(&out[..100]), text(&out[100..108])), ("a/one".into(), "0000640".into()));
        assert_eq!((text(&out[124..136]), out[156]), ("00000000005".into(), b'0'));
        assert_eq!(text(&out[136..148]), format!("{:011o}", 1_700_000_000));
        let sum: u64 = out.iter().map(|byte| u64::from(*byte)).sum();
        let own: u64 = out[148..156].iter().map(|byte| u64::from(*byte)).sum();
        let told = u64::from_str_radix(&text(&out[148..155]), 8).unwrap();
        assert_eq!(told, sum - own + 8 * u64::from(b' '));
        assert_eq!((padding(0), padding(5), padding(512)), (0, 507, 0));
    }

    #[test]
    fn what_is_too_long_for_its_field_goes_another_way() {
        let mut out = Vec::new();
        let path = "x/".repeat(60) + "y";
        head(&mut out, path.as_bytes(), 0o755, -5, Entry::Directory);
        assert_eq!((out.len(), out[156], text(&out[..13])), (3 * BLOCK, b'L', "././@LongLink".into()));
        assert_eq!(text(&out[BLOCK..2 * BLOCK]), format!("{path}/"));
        assert_eq!(
            (out[2 * BLOCK + 156], text(&out[2 * BLOCK + 136..2 * BLOCK + 148])),
            (b'5', "0".repeat(11))
        );
        let mut out = Vec::new();
        head(&mut out, b"huge", 0o644, 0, Entry::File(1 << 40));
        assert_eq!(out[124], 0x80);
        assert_eq!(out[128..136], (1_u64 << 40).to_be_bytes());
        let mut out = Vec::new();
        head(&mut out, b"almost", 0o644, 0, Entry::File((1 << 33) - 1));
        assert_eq!(text(&out[124..136]), "77777777777");
    }
}
