//! The grammar of layouts:
//!
//! ```text
//! type     = "u8" | … | "()" | NAME "<" type { ", " type } ">" | "[" type "; " NUMBER "]" | "(" type { ", " type } ")"
//!          | "struct " NAME fields | "enum " NAME " {" [ " " NAME fields { ", " NAME fields } " " ] "}"
//!          | "^" NAME [ "#" NUMBER ]                        a definition before: the first of that name, or the numbered one
//! fields   = "" | "(" [ type { ", " type } ] ")" | " {" [ " " NAME ": " type { ", " NAME ": " type } " " ] "}"
//! ```
//!
//! Spaces are free. The SDK's `StateType::describe` writes it.

use crate::layout::{Fields, Shape, Slot, Type, TypeId, Variant};
use crate::{LayoutError, MAX_DEPTH, MAX_LAYOUT_LEN};

pub(crate) fn parse(text: &str) -> Result<(Vec<Type>, TypeId), LayoutError> {
    if text.len() > MAX_LAYOUT_LEN {
        return Err(LayoutError::TooLong { len: text.len() });
    }
    let mut parser = Parser { text, at: 0, depth: 0, types: Vec::new(), defined: Vec::new() };
    let root = parser.ty()?;
    parser.blank();
    if parser.at < text.len() {
        return Err(parser.expected("the end"));
    }
    Ok((parser.types, root))
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    types: Vec<Type>,
    /// Definitions in the order of the text.
    defined: Vec<(&'t str, TypeId)>,
}

type Parsed<T> = Result<T, LayoutError>;

impl<'t> Parser<'t> {
    fn expected(&self, expected: &'static str) -> LayoutError {
        LayoutError::Syntax { at: self.at, expected }
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn blank(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn take(&mut self, sign: char) -> bool {
        self.blank();
        let found = self.rest().starts_with(sign);
        self.at += if found { sign.len_utf8() } else { 0 };
        found
    }

    fn must(&mut self, sign: char, expected: &'static str) -> Parsed<()> {
        if self.take(sign) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn word(&mut self) -> Parsed<&'t str> {
        self.blank();
        let ends = |sign: char| sign.is_whitespace() || ":;,<>()[]{}^#".contains(sign);
        let word = self.rest().split(ends).next().unwrap_or_default();
        if word.is_empty() {
            return Err(self.expected("a name"));
        }
        self.at += word.len();
        Ok(word)
    }

    fn number(&mut self) -> Parsed<u64> {
        let at = self.at;
        let number = self.word()?.parse();
        number.map_err(|_| LayoutError::Syntax { at, expected: "a number" })
    }

    fn add(&mut self, ty: Type) -> TypeId {
        self.types.push(ty);
        TypeId(self.types.len() - 1)
    }

    fn ty(&mut self) -> Parsed<TypeId> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep);
        }
        let parsed = self.any_type();
        self.depth -= 1;
        parsed
    }

    fn any_type(&mut self) -> Parsed<TypeId> {
        if self.take('^') {
            return self.reference();
        }
        if self.take('[') {
            let item = self.ty()?;
            self.must(';', "`;`")?;
            let len = self.number()?;
            self.must(']', "`]`")?;
            return Ok(self.add(Type::Array { item, len }));
        }
        if self.take('(') {
            let fields = self.listed(Shape::Tuple, ')')?;
            let unit = fields.slots.is_empty();
            return Ok(self.add(if unit { Type::Unit } else { Type::Tuple(fields) }));
        }
        match self.word()? {
            "struct" => self.definition(|parser, name| {
                Ok(Type::Struct { name: name.to_owned(), fields: parser.fields()? })
            }),
            "enum" => self.definition(|parser, name| {
                Ok(Type::Enum { name: name.to_owned(), variants: parser.variants()? })
            }),
            name => self.named(name),
        }
    }

    fn reference(&mut self) -> Parsed<TypeId> {
        let at = self.at;
        let name = self.word()?;
        let place = if self.take('#') { self.number()? } else { 1 };
        let place = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
        let mut namesakes = self.defined.iter().filter(|(known, _)| *known == name);
        let found = place.and_then(|place| namesakes.nth(place));
        found.map(|(_, id)| *id).ok_or(LayoutError::Syntax { at, expected: "a type that is defined before" })
    }

    fn definition(&mut self, body: impl FnOnce(&mut Self, &'t str) -> Parsed<Type>) -> Parsed<TypeId> {
        let name = self.word()?;
        // It has its place before its body, which may name it.
        let id = self.add(Type::Unit);
        self.defined.push((name, id));
        self.types[id.0] = body(self, name)?;
        Ok(id)
    }

    fn named(&mut self, name: &str) -> Parsed<TypeId> {
        let int = |bytes, signed, pointer_sized| Type::Int { bytes, signed, pointer_sized };
        let plain = match name {
            "u8" => int(1, false, false),
            "u16" => int(2, false, false),
            "u32" => int(4, false, false),
            "u64" => int(8, false, false),
            "u128" => int(16, false, false),
            // A plugin's pointers are 32 bits wide in an archive.
            "usize" => int(4, false, true),
            "i8" => int(1, true, false),
            "i16" => int(2, true, false),
            "i32" => int(4, true, false),
            "i64" => int(8, true, false),
            "i128" => int(16, true, false),
            "isize" => int(4, true, true),
            "f32" => Type::F32,
            "f64" => Type::F64,
            "bool" => Type::Bool,
            "char" => Type::Char,
            "String" => Type::Text,
            "Duration" => Type::Duration,
            _ => return self.generic(name),
        };
        Ok(self.add(plain))
    }

    fn generic(&mut self, name: &str) -> Parsed<TypeId> {
        let begin = self.at - name.len();
        let unknown = LayoutError::Syntax { at: begin, expected: "a type" };
        if !self.take('<') {
            return Err(unknown);
        }
        let mut parts = Vec::new();
        loop {
            parts.push(self.ty()?);
            if !self.take(',') {
                break;
            }
        }
        self.must('>', "`>`")?;
        let ty = match (name, parts.as_slice()) {
            ("Option", [item]) => Type::Option(*item),
            ("Box", [item]) => Type::Box(*item),
            ("Vec", [item]) => Type::List { item: *item, deque: false },
            ("VecDeque", [item]) => Type::List { item: *item, deque: true },
            ("Result", [ok, err]) => Type::Result(*ok, *err),
            ("BTreeMap", [key, value]) => Type::Map { key: *key, value: *value, hashed: false },
            ("HashMap", [key, value]) => Type::Map { key: *key, value: *value, hashed: true },
            ("BTreeSet", [item]) => Type::Set { item: *item, hashed: false },
            ("HashSet", [item]) => Type::Set { item: *item, hashed: true },
            _ => return Err(unknown),
        };
        Ok(self.add(ty))
    }

    fn fields(&mut self) -> Parsed<Fields> {
        if self.take('(') {
            self.listed(Shape::Tuple, ')')
        } else if self.take('{') {
            self.listed(Shape::Named, '}')
        } else {
            Ok(Fields { shape: Shape::Unit, slots: Vec::new() })
        }
    }

    fn listed(&mut self, shape: Shape, end: char) -> Parsed<Fields> {
        let mut slots = Vec::new();
        while !self.take(end) {
            if !slots.is_empty() {
                self.must(',', "`,` or the closing bracket")?;
            }
            let mut name = String::new();
            if shape == Shape::Named {
                self.word()?.clone_into(&mut name);
                self.must(':', "`:`")?;
            }
            slots.push(Slot { name, ty: self.ty()?, at: 0 });
        }
        Ok(Fields { shape, slots })
    }

    fn variants(&mut self) -> Parsed<Vec<Variant>> {
        self.must('{', "`{`")?;
        let mut variants = Vec::new();
        while !self.take('}') {
            if !variants.is_empty() {
                self.must(',', "`,` or `}`")?;
            }
            let name = self.word()?.to_owned();
            variants.push(Variant { name, fields: self.fields()? });
        }
        // rkyv has no more: the tag is one byte.
        if variants.len() > 256 { Err(self.expected("at most 256 variants")) } else { Ok(variants) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_find_their_definition() {
        let text = "struct Both { mine: struct Word { text: String }, other: struct Word(u8), again: ^Word#1, more: ^Word#2 }";
        let (types, root) = parse(text).unwrap();
        let Type::Struct { name, fields } = &types[root.0] else { panic!("no struct") };
        assert_eq!((name.as_str(), fields.slots.len()), ("Both", 4));
        assert_eq!(fields.slots[0].ty, fields.slots[2].ty);
        assert_eq!(fields.slots[1].ty, fields.slots[3].ty);
        assert_eq!(fields.slots[1].name, "other");
    }

    #[test]
    fn names_may_be_any() {
        parse("struct Größe { struct: u8, enum: String, f: enum Vec { Some, u8(u8) } }").unwrap();
        parse("enum Nothing {}").unwrap();
    }

    #[test]
    fn what_is_no_layout_is_refused_with_its_place() {
        let at = |text: &str| match parse(text) {
            Err(LayoutError::Syntax { at, .. }) => at,
            other => panic!("{text}: {other:?}"),
        };
        for (text, place) in [
            ("", 0),
            ("u9", 0),
            ("Vec<u8", 6),
            ("Vec<u8, u8>", 0),
            ("[u8; x]", 4),
            ("[u8]", 3),
            ("^Word", 1),
            ("struct A { a: ^B }", 15),
            ("struct A { a u8 }", 13),
            ("struct A { a: u8", 16),
            ("u8 u8", 3),
            ("struct A(^A#0)", 10),
            ("enum E { A B }", 11),
            ("Option", 0),
        ] {
            assert_eq!(at(text), place, "{text}");
        }
        assert_eq!(parse(&"Vec<".repeat(1000)).unwrap_err(), LayoutError::TooDeep);
        assert!(matches!(parse(&"u8".repeat(1 << 20)), Err(LayoutError::TooLong { .. })));
        let variants: Vec<String> = (0..257).map(|n| format!("V{n}")).collect();
        assert!(parse(&format!("enum E {{ {} }}", variants.join(", "))).is_err());
    }
}
