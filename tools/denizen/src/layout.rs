//! A type of state whose layout changed: both layouts, side by side or one below the other, and the ways out.

use std::path::Path;

use denizen_client::Problem;
use serde_json::Value;

use crate::{
    place,
    terminal::{Paint, printable},
};

/// Columns of a terminal that nobody made larger. Two layouts that do not fit into them stand one below the other.
const COLUMNS: usize = 80;

/// One changed type.
struct Changed<'a> {
    name: &'a str,
    old: &'a str,
    new: &'a str,
}

/// The whole message. `denizen` is how to type this program's name with what it needs to find the node; `package` is what
/// was to be deployed as `app`.
pub(crate) fn explain(problem: &Problem, app: &str, package: &Path, denizen: &str, paint: Paint) -> String {
    let mut text = format!("{} the layout of stored state changed\n", paint.red("error:"));
    let changes = changes(problem);
    if changes.is_empty() {
        text.push_str(&format!("  {}\n", printable(problem.detail.as_deref().unwrap_or(&problem.title))));
    }
    for change in &changes {
        text.push_str(&format!("\n  {}\n\n", paint.bold(&printable(change.name))));
        text.push_str(&both(change.old, change.new, paint));
    }
    let package = place::as_typed(package);
    text.push_str(&format!(
        "\n  Objects of the old layout may be in use. The ways out:\n\n    \
         {}  keep the old type beside the new one, and write a #[migrate] function\n    \
         {}  undo the change, and nothing is lost\n    \
         {}  give the new layout a type name of its own, and convert in the function\n    \
         {}  delete the processes that hold the old one, and save again: {}\n    \
         {}  take the new layout anyway; old objects then answer `state-type-changed`\n    \
         {}  until they are deleted or overwritten:\n             {}\n",
        paint.bold("migrate"),
        paint.bold("revert "),
        paint.bold("rename "),
        paint.bold("delete "),
        paint.bold(&format!("{denizen} rm {app}/PROCESS")),
        paint.bold("replace"),
        "       ",
        paint.bold(&format!("{denizen} image deploy --debug --layout replace {package}")),
    ));
    text
}

fn changes(problem: &Problem) -> Vec<Changed<'_>> {
    let list = problem.more.get("layouts").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Changed::read).collect()
}

impl<'a> Changed<'a> {
    fn read(value: &'a Value) -> Option<Changed<'a>> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        Some(Changed { name: text("type").or(text("name"))?, old: text("old")?, new: text("new")? })
    }
}

/// Two layouts, a field on each line; what only one of them has is marked.
fn both(old: &str, new: &str, paint: Paint) -> String {
    let (old, new) = (fields(old), fields(new));
    let width = |lines: &[String]| lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let margins = "    ".len() + " ~ ".len();
    if margins + width(&old) + width(&new) <= COLUMNS {
        side_by_side(&old, &new, paint)
    } else {
        one_below_the_other(&old, &new, paint)
    }
}

fn one_below_the_other(old: &[String], new: &[String], paint: Paint) -> String {
    let mut text = format!("    {} stored, {} new\n", paint.red("-"), paint.green("+"));
    let mut line = |mark: &str, line: &str| text.push_str(&format!("    {mark} {line}\n"));
    let (mut only_old, mut only_new) = (vec![], vec![]);
    // What changed together stays together: first all that is gone, then all that came.
    for (old_line, new_line) in aligned(old, new).into_iter().chain([("", "")]) {
        if old_line != new_line {
            only_old.extend(Some(old_line).filter(|line| !line.is_empty()));
            only_new.extend(Some(new_line).filter(|line| !line.is_empty()));
            continue;
        }
        only_old.drain(..).for_each(|gone| line(&paint.red("-"), &paint.red(gone)));
        only_new.drain(..).for_each(|came| line(&paint.green("+"), &paint.green(came)));
        if !old_line.is_empty() {
            line(" ", old_line);
        }
    }
    text
}

fn side_by_side(old: &[String], new: &[String], paint: Paint) -> String {
    let width = old.iter().map(|line| line.chars().count()).max().unwrap_or(0).max("stored".len());
    let pad = |line: &str| " ".repeat(width - line.chars().count());
    let mut text = format!("    {}{}   {}\n", paint.dim("stored"), pad("stored"), paint.dim("new"));
    for (old_line, new_line) in aligned(old, new) {
        let gap = pad(old_line);
        let left =
            if new.iter().any(|line| line == old_line) { old_line.to_owned() } else { paint.red(old_line) };
        let right =
            if old.iter().any(|line| line == new_line) { new_line.to_owned() } else { paint.green(new_line) };
        let mark = match (old_line == new_line, old_line.is_empty(), new_line.is_empty()) {
            (true, _, _) => " ",
            (_, true, _) => "+",
            (_, _, true) => "-",
            _ => "~",
        };
        text.push_str(format!("    {left}{gap} {mark} {right}").trim_end());
        text.push('\n');
    }
    text
}

/// `struct A { x: u64, y: Vec<(u8, u8)> }` as head, one line for each field, foot. Commas within brackets part nothing.
fn fields(layout: &str) -> Vec<String> {
    let layout = printable(layout);
    let Some((head, rest)) = layout.split_once('{') else { return vec![layout] };
    let body = rest.trim_end().strip_suffix('}').unwrap_or(rest);
    let mut lines = vec![format!("{}{{", head)];
    let mut depth = 0_i32;
    let mut field = String::new();
    for c in body.chars().chain([',']) {
        depth += i32::from("<([{".contains(c)) - i32::from(">)]}".contains(c));
        if c == ',' && depth <= 0 {
            let trimmed = field.trim();
            if !trimmed.is_empty() {
                lines.push(format!("  {trimmed}"));
            }
            field.clear();
        } else {
            field.push(c);
        }
    }
    lines.push("}".to_owned());
    lines
}

/// Pairs of lines: a longest common subsequence stands side by side; what is between is paired as it comes.
fn aligned<'a>(old: &'a [String], new: &'a [String]) -> Vec<(&'a str, &'a str)> {
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let (mut only_old, mut only_new) = (Vec::new(), Vec::new());
    let mut pairs = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            pair_up(&mut only_old, &mut only_new, &mut pairs);
            pairs.push((old[i].as_str(), new[j].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            only_old.push(old[i].as_str());
            i += 1;
        } else {
            only_new.push(new[j].as_str());
            j += 1;
        }
    }
    pair_up(&mut only_old, &mut only_new, &mut pairs);
    pairs
}

fn pair_up<'a>(old: &mut Vec<&'a str>, new: &mut Vec<&'a str>, pairs: &mut Vec<(&'a str, &'a str)>) {
    for index in 0..old.len().max(new.len()) {
        pairs
            .push((old.get(index).copied().unwrap_or_default(), new.get(index).copied().unwrap_or_default()));
    }
    old.clear();
    new.clear();
}

#[cfg(test)]
mod tests {
    use super::{both, fields};
    use crate::terminal::Paint;

    #[test]
    fn fields_are_parted_where_they_end() {
        assert_eq!(
            fields("struct A { x: HashMap<u8, (u8, [u8; 4])>, y: struct B { z: u8, w: u8 } }"),
            ["struct A {", "  x: HashMap<u8, (u8, [u8; 4])>", "  y: struct B { z: u8, w: u8 }", "}"]
        );
        assert_eq!(fields("u64"), ["u64"]);
    }

    #[test]
    fn both_layouts_side_by_side() {
        let text = both(
            "struct C { count: u64, name: String }",
            "struct C { id: u8, count: u64, name: Vec<u8> }",
            Paint::PLAIN,
        );
        let expected = "    \
stored            new
    struct C {        struct C {
                    +   id: u8
      count: u64          count: u64
      name: String  ~   name: Vec<u8>
    }                 }
";
        // The columns matter, not this test's own margin.
        assert_eq!(text.replace(' ', ""), expected.replace(' ', ""), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("    ")), "{text}");
    }

    #[test]
    fn wide_layouts_stand_one_below_the_other() {
        let text = both(
            "struct Cart { items: Vec<struct Item { name: String, pence: u64 }>, note: Option<String> }",
            "struct Cart { items: Vec<struct Item { name: String, pence: u64, qty: u32 }>, note: Option<String> }",
            Paint::PLAIN,
        );
        let expected = "    \
- stored, + new
      struct Cart {
    -   items: Vec<struct Item { name: String, pence: u64 }>
    +   items: Vec<struct Item { name: String, pence: u64, qty: u32 }>
        note: Option<String>
      }
";
        assert_eq!(text, expected, "{text}");
    }
}
