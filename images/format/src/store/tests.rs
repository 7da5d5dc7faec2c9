//! The store against honest, hostile and unlucky archives.

use std::os::unix::fs::symlink;
use std::sync::OnceLock;

use tar::{Builder, EntryType, Header};

use super::contents::Sha256Hex;
use super::*;
use crate::fixture;

fn plugin() -> &'static [u8] {
    static PLUGIN: OnceLock<Vec<u8>> = OnceLock::new();
    PLUGIN.get_or_init(|| fixture::compile(fixture::PLUGIN, &[]))
}

struct Room {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    fn import(&self, archive: &[u8]) -> Result<Image, StoreError> {
        self.store.import_archive(archive, &ImportLimits::default())
    }

    /// Imports what must be refused, and sees to it that nothing stays behind, neither here nor where a path
    /// might have climbed to.
    fn refusal(&self, archive: &[u8]) -> String {
        let before = names_in(self.store.dir());
        let error = self.import(archive).expect_err("the archive should be refused");
        assert!(error.is_input(), "{error:?}");
        assert_eq!(names_in(self.store.dir()), before, "left behind after {error}");
        assert_eq!(names_in(self.dir.path()), ["images"], "escaped after {error}");
        error.to_string()
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// An archive in the making, honest unless told otherwise.
struct Forge {
    files: Vec<(String, Vec<u8>, Mode)>,
    libraries: Vec<String>,
}

impl Forge {
    fn new() -> Self {
        let files = vec![
            ("denizen.toml".to_owned(), b"name = \"a\"\nfiles = \"image\"\n".to_vec(), Mode::Plain),
            ("plugin.so".to_owned(), plugin().to_vec(), Mode::Plain),
        ];
        Self { files, libraries: Vec::new() }
    }

    fn with(mut self, path: &str, content: &[u8]) -> Self {
        self.files.retain(|(other, _, _)| other != path);
        self.files.push((path.to_owned(), content.to_vec(), Mode::Plain));
        self
    }

    fn contents(&self) -> Contents {
        let record = |(path, content, mode): &(String, Vec<u8>, Mode)| FileRecord {
            path: path.clone(),
            bytes: content.len() as u64,
            mode: *mode,
            sha256: Sha256Hex(Sha256::digest(content).into()),
        };
        Contents::new("a", self.libraries.clone(), self.files.iter().map(record).collect())
    }

    fn builder(&self) -> Builder<Vec<u8>> {
        let mut builder = Builder::new(Vec::new());
        append(&mut builder, "image.json", &self.contents().to_bytes().unwrap());
        builder
    }

    fn archive(&self) -> Vec<u8> {
        let mut builder = self.builder();
        for (path, content, _) in &self.files {
            append(&mut builder, path, content);
        }
        builder.into_inner().unwrap()
    }

    /// The honest archive with one more entry.
    fn archive_and(&self, add: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = self.builder();
        for (path, content, _) in &self.files {
            append(&mut builder, path, content);
        }
        add(&mut builder);
        builder.into_inner().unwrap()
    }
}

fn append(builder: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o4777);
    builder.append_data(&mut header, path, content).unwrap();
}

/// An entry whose name and kind no honest tool would write.
fn append_raw(builder: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

#[test]
fn an_image_goes_in_and_comes_out_the_same() {
    let room = Room::new();
    let long = format!("files/{}/{}.txt", "d".repeat(120), "f".repeat(200));
    let mut forge = Forge::new().with("files/words.txt", b"hello").with(&long, b"deep");
    forge.files.push(("files/run".to_owned(), b"#!".to_vec(), Mode::Executable));
    let image = room.import(&forge.archive()).unwrap();
    assert_eq!(image.id, ImageId::of(&forge.contents().to_bytes().unwrap()));
    assert_eq!(image.manifest.name, "a");
    assert_eq!(image.bytes, forge.contents().bytes());
    room.store.verify(&image.id).unwrap();

    let mode = |path: &str| fs::metadata(image.dir.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("plugin.so"), mode("files/run"), mode("files"), mode("")), (0o444, 0o555, 0o755, 0o755));

    let (mut once, mut twice) = (Vec::new(), Vec::new());
    room.store.export_archive(&image.id, &mut once).unwrap();
    let other = Room::new();
    assert_eq!(other.import(&once).unwrap().id, image.id);
    other.store.export_archive(&image.id, &mut twice).unwrap();
    assert!(once == twice, "an export depends on something else than the image");
}

#[test]
fn images_are_listed_found_and_removed() {
    let room = Room::new();
    let first = room.import(&Forge::new().archive()).unwrap();
    let second = room.import(&Forge::new().with("files/x", b"x").archive()).unwrap();
    let mut ids = [first.id, second.id];
    ids.sort();
    assert_eq!(room.store.list().unwrap().iter().map(|image| image.id).collect::<Vec<_>>(), ids);
    room.store.remove(&first.id).unwrap();
    assert!(matches!(room.store.get(&first.id), Err(StoreError::UnknownImage(id)) if id == first.id));
    assert!(matches!(room.store.remove(&first.id), Err(StoreError::UnknownImage(_))));
    assert!(matches!(room.store.export_archive(&first.id, io::sink()), Err(StoreError::UnknownImage(_))));
    assert_eq!(names_in(room.store.dir()), [second.id.to_string()]);
}

#[test]
fn the_same_image_may_come_many_times_at_once() {
    let room = Room::new();
    let archive = Forge::new().archive();
    std::thread::scope(|scope| {
        let imports: Vec<_> = (0..8).map(|_| scope.spawn(|| room.import(&archive).unwrap().id)).collect();
        let ids: BTreeSet<ImageId> = imports.into_iter().map(|import| import.join().unwrap()).collect();
        assert_eq!(ids.len(), 1);
    });
    assert_eq!(names_in(room.store.dir()).len(), 1);
    room.store.verify(&room.store.ids().unwrap()[0]).unwrap();
}

#[test]
fn paths_that_climb_are_refused() {
    let room = Room::new();
    for name in [
        &b"/tmp/escape"[..],
        b"../escape",
        b"files/../../escape",
        b"files/a\nb",
        b"files/\xff\xfe",
        b"lib/x/y",
        b"",
        b".",
        b"denizen.toml/x",
        b"image.json",
        b"files/",
        b"other",
    ] {
        let text =
            room.refusal(&Forge::new().archive_and(|tar| append_raw(tar, name, EntryType::Regular, b"x")));
        assert!(text.starts_with("the image archive is refused because of"), "{text}");
    }
    for path in ["/abs", "../escape", "files/../../escape", "files/a\0b"] {
        let forge = Forge::new().with(path, b"x");
        let mut builder = forge.builder();
        append_raw(&mut builder, path.as_bytes(), EntryType::Regular, b"x");
        room.refusal(&builder.into_inner().unwrap());
    }
}

#[test]
fn what_is_not_a_plain_file_is_refused() {
    let room = Room::new();
    for (kind, say) in [
        (EntryType::Symlink, "it is a link"),
        (EntryType::Link, "it is a link"),
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a pipe"),
        (EntryType::Directory, "a directory"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::XHeader, "a PAX header"),
        (EntryType::XGlobalHeader, "a PAX header"),
        (EntryType::Continuous, "of a kind"),
        (EntryType::GNULongLink, "of a kind"),
        (EntryType::new(b'Z'), "of a kind"),
    ] {
        // In place of a listed file, where nothing but its kind can be wrong.
        let forge = Forge::new().with("files/x", b"x");
        let mut builder = forge.builder();
        append_raw(&mut builder, b"files/x", kind, b"x");
        let text = room.refusal(&builder.into_inner().unwrap());
        assert!(text.contains("\"files/x\"") && text.contains(say), "{text}");
    }
}

#[test]
fn a_sparse_file_cannot_pose_as_a_small_one() {
    let room = Room::new();
    let archive = Forge::new().archive_and(|tar| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..7].copy_from_slice(b"files/x");
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(0);
        header.as_gnu_mut().unwrap().realsize = *b"77777777777\0";
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
    });
    assert!(room.refusal(&archive).contains("a sparse file"));
}

#[test]
fn duplicates_strangers_and_absentees_are_refused() {
    let room = Room::new();
    let text = room.refusal(&Forge::new().archive_and(|tar| append(tar, "plugin.so", plugin())));
    assert!(text.contains("comes twice"), "{text}");
    let text = room.refusal(&Forge::new().archive_and(|tar| append(tar, "files/x", b"x")));
    assert!(text.contains("not listed"), "{text}");
    let forge = Forge::new();
    let mut builder = forge.builder();
    append(&mut builder, "denizen.toml", &forge.files[0].1);
    assert!(room.refusal(&builder.into_inner().unwrap()).contains("ends without it"));
    let mut builder = Builder::new(Vec::new());
    append(&mut builder, "denizen.toml", b"name = \"a\"");
    assert!(
        room.refusal(&builder.into_inner().unwrap()).contains("the first entry of an image is image.json")
    );
}

#[test]
fn other_bytes_than_listed_are_refused() {
    let room = Room::new();
    for (content, say) in
        [(&b"wrong"[..], "its content is not"), (b"longer", "longer than"), (b"shrt", "shorter than")]
    {
        let forge = Forge::new().with("files/x", b"right");
        let mut builder = forge.builder();
        append(&mut builder, "files/x", content);
        let text = room.refusal(&builder.into_inner().unwrap());
        assert!(text.contains(say), "{text}");
    }
}

#[test]
fn sizes_and_counts_are_limited_before_they_are_stored() {
    let room = Room::new();
    let archive = Forge::new().with("files/big", &vec![7; 100_000]).archive();
    let limits = ImportLimits { bytes: 90_000, files: 10 };
    assert!(matches!(
        room.store.import_archive(&archive[..], &limits),
        Err(StoreError::TooLarge { what: "bytes", .. })
    ));
    let limits = ImportLimits { bytes: 1 << 30, files: 2 };
    assert!(matches!(
        room.store.import_archive(&archive[..], &limits),
        Err(StoreError::TooLarge { what: "files", .. })
    ));

    // A header may claim any size: an endless list of contents, and an endless name.
    let endless = |name: &[u8], kind| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(1 << 50);
        header.set_cksum();
        io::Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(b'x'))
    };
    let limits = ImportLimits::default();
    let long_list = room.store.import_archive(endless(b"image.json", EntryType::Regular), &limits);
    assert!(matches!(long_list, Err(StoreError::TooLarge { what: "bytes of image.json", .. })));
    let long_name = room.store.import_archive(endless(b"x", EntryType::GNULongName), &limits);
    assert!(matches!(long_name, Err(StoreError::Refused { .. })));
    assert_eq!(names_in(room.store.dir()), Vec::<String>::new());
}

#[test]
fn an_endless_stream_is_left_where_it_deceives() {
    let room = Room::new();
    let forge = Forge::new().with("files/x", b"x");
    let honest = forge.builder().into_inner().unwrap();
    let honest = &honest[..honest.len() - 1024];
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..7].copy_from_slice(b"files/x");
    header.set_size(1 << 50);
    header.set_cksum();
    let read = std::cell::Cell::new(0);
    let endless =
        io::Cursor::new([honest, header.as_bytes()].concat()).chain(Counted(io::repeat(b'x'), &read));
    let error = room.store.import_archive(endless, &ImportLimits::default()).unwrap_err();
    assert!(error.to_string().contains("longer than image.json says"), "{error}");
    assert!(read.get() <= 64 << 10, "{} bytes were read", read.get());
    assert_eq!(names_in(room.store.dir()), Vec::<String>::new());
}

struct Counted<'c, R>(R, &'c std::cell::Cell<usize>);

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(into)?;
        self.1.set(self.1.get() + read);
        Ok(read)
    }
}

#[test]
fn every_cut_is_refused_and_leaves_nothing() {
    let room = Room::new();
    let archive = Forge::new().with("files/x", &[1; 700]).archive();
    // The last two blocks are the end mark, which some tools leave out.
    let end = archive.len() - 1024;
    for cut in (0..end - 1).step_by(97).chain([1, 511, 512, 513, end - 513]) {
        room.refusal(&archive[..cut]);
    }
    room.import(&archive[..end]).unwrap();
}

#[test]
fn mutated_archives_get_an_answer() {
    let room = Room::new();
    let archive = Forge::new().with("files/x", &[1; 700]).archive();
    let good = room.import(&archive).unwrap().id;
    for at in (0..archive.len() - 1024).step_by(41) {
        let mut bytes = archive.clone();
        bytes[at] ^= 0x5a;
        // Tar's own fields may change without harm (an owner, a date); whatever goes in is the same image.
        if let Ok(image) = room.import(&bytes) {
            assert_eq!(image.id, good);
        }
    }
    assert_eq!(names_in(room.store.dir()), [good.to_string()]);
    room.store.verify(&good).unwrap();
}

#[test]
fn a_bad_manifest_or_plugin_is_refused_by_its_name() {
    let room = Room::new();
    let text = room.refusal(&Forge::new().with("denizen.toml", b"name = \"a\"\nmemroy = 1\n").archive());
    assert!(text.starts_with("denizen.toml:2:1: unknown field `memroy`"), "{text}");
    let text = room.refusal(&Forge::new().with("denizen.toml", b"name = \"b\"\n").archive());
    assert!(text.contains("its `name` is not the manifest's"), "{text}");
    let text =
        room.refusal(&Forge::new().with("denizen.toml", b"name = \"a\"\n").with("files/x", b"").archive());
    assert!(text.contains("write files = \"image\""), "{text}");
    let text = room.refusal(&Forge::new().with("plugin.so", b"#!/bin/sh").archive());
    assert!(text.starts_with("plugin.so: it is not an ELF file (a script)"), "{text}");
    let mut foreign = plugin().to_vec();
    foreign[18..20].copy_from_slice(&183_u16.to_le_bytes());
    let text = room.refusal(&Forge::new().with("plugin.so", &foreign).archive());
    assert!(text.starts_with("plugin.so: it is built for aarch64"), "{text}");
    for cut in [16, 64, 1000, plugin().len() / 2] {
        let text = room.refusal(&Forge::new().with("plugin.so", &plugin()[..cut]).archive());
        assert!(text.starts_with("plugin.so: the ELF file is damaged"), "{cut}: {text}");
    }
}

#[test]
fn libraries_must_be_complete_and_in_order() {
    let room = Room::new();
    let place = tempfile::tempdir().unwrap();
    let here = format!("-L{}", place.path().display());
    let shared = ["-shared", "-fPIC", here.as_str()];
    let foo = fixture::compile_to(
        &place.path().join("libfoo.so"),
        "int foo;",
        &[&shared[..], &["-Wl,-soname,libfoo.so"]].concat(),
    );
    let source = format!("{}extern int foo; int *bar(void) {{ return &foo; }}", fixture::PLUGIN);
    let plugin = fixture::compile(&source, &[&here, "-lfoo"]);
    let text = room.refusal(&Forge::new().with("plugin.so", &plugin).archive());
    assert!(text.contains("plugin.so needs the shared library libfoo.so"), "{text}");
    let mut forge = Forge::new().with("plugin.so", &plugin).with("lib/libfoo.so", &fs::read(foo).unwrap());
    forge.libraries.push("lib/libfoo.so".to_owned());
    assert_eq!(room.import(&forge.archive()).unwrap().libraries, ["lib/libfoo.so"]);
}

#[test]
fn damage_is_found_and_a_new_import_repairs_it() {
    let damages: [fn(&Path); 6] = [
        |dir| rewrite(&dir.join("plugin.so"), |bytes| bytes[100] ^= 1),
        |dir| rewrite(&dir.join("plugin.so"), |bytes| bytes.truncate(10)),
        |dir| rewrite(&dir.join("image.json"), |bytes| bytes.push(b' ')),
        |dir| fs::remove_file(dir.join("denizen.toml")).unwrap(),
        |dir| fs::write(dir.join("files/extra"), "x").unwrap(),
        |dir| {
            fs::remove_file(dir.join("files/x")).unwrap();
            symlink("/etc/passwd", dir.join("files/x")).unwrap();
        },
    ];
    let room = Room::new();
    let archive = Forge::new().with("files/x", b"x").archive();
    for damage in damages {
        let image = room.import(&archive).unwrap();
        damage(&image.dir);
        let error = room.store.verify(&image.id).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }) && !error.is_input(), "{error:?}");
        room.import(&archive).unwrap();
        room.store.verify(&image.id).unwrap();
    }
    assert_eq!(names_in(room.store.dir()).len(), 1);
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn what_a_killed_import_left_is_swept_and_a_live_one_is_not() {
    let room = Room::new();
    let live = Staging::create(room.store.dir()).unwrap();
    let dead = room.store.dir().join(".unfinished-dead");
    fs::create_dir_all(dead.join("files")).unwrap();
    fs::write(dead.join("files/x"), "x").unwrap();
    ImageStore::open(room.store.dir()).unwrap();
    assert!(!dead.exists());
    assert!(live.path().exists());
}

#[test]
fn a_host_that_cannot_store_is_blamed_itself() {
    let room = Room::new();
    fs::remove_dir_all(room.store.dir()).unwrap();
    let error = room.import(&Forge::new().archive()).unwrap_err();
    assert!(!error.is_input(), "{error:?}");
    fs::write(room.store.dir(), "a file").unwrap();
    assert!(matches!(ImageStore::open(room.store.dir()), Err(StoreError::Io { .. })));
}
