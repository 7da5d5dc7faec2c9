//! What is remembered, and the rules for changing it: one value for the length of one transaction.
//!
//! A transaction stays open over many requests. What they change is made durable by the journal, request by request, where it can carry
//! it ([`Ledger::take_records`]), and by the end of the transaction otherwise ([`Ledger::must_end`]).
//!
//! Every method looks first and writes last, so that a refusal has written nothing and the requests beside it
//! can be made durable.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format`, `epoch`, `journal` | a number: the version of this layout; the last epoch; the generation to read on top |
//! | `apps` | application | JSON: its image and the number of its processes |
//! | `processes` | application, process | JSON: a [`ProcessRecord`] |

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use denizen_image::{ImageId, Limits};
use redb::{Database, Durability, ReadableTable, Table, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::SchedError;
use super::database::{StoreResult, undecodable};
use crate::lifecycle::Event;
use crate::placement::{Need, NodeView, place};
use crate::{
    AppName, AppRecord, Claim, Create, Epoch, Home, ImageRecord, ImageUse, Origin, Phase, ProcessName,
    ProcessRecord, Settled,
};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const APPS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("apps");
const PROCESSES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("processes");

/// The version of this layout. A release reads its own and older ones. 2: a journal is to be read, too.
const FORMAT: u64 = 2;
/// Sorts behind every name.
const AFTER_NAMES: &str = "~";

/// Applications as the open transaction has them: read once, and written when it ends. For whoever ran the last transaction to hand to
/// the next; empty after one that failed.
#[derive(Debug, Default)]
pub(super) struct Apps(HashMap<AppName, Cached>);

#[derive(Debug)]
struct Cached {
    row: AppRow,
    is_written: bool,
}

/// What is stored of an application.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct AppRow {
    #[serde(with = "shared")]
    image: Arc<ImageRecord>,
    /// The image before this one.
    #[serde(default)]
    previous: Option<ImageId>,
    /// `limits.processes` of the image.
    max_processes: u64,
    /// What a process of it asks of its node.
    #[serde(default)]
    need: Need,
    /// How many there are, so that a claim need not count.
    processes: u64,
}

/// An image's record is large, and every claim carries it.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::ImageRecord;

    pub(super) fn serialize<S: Serializer>(image: &Arc<ImageRecord>, to: S) -> Result<S::Ok, S::Error> {
        image.as_ref().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<ImageRecord>, D::Error> {
        ImageRecord::deserialize(from).map(Arc::new)
    }
}

/// The tables, open for one transaction.
pub(super) struct Ledger<'t> {
    path: &'t Path,
    cached: &'t mut Apps,
    /// Records that were changed and that the journal has not been given.
    records: Vec<ProcessRecord>,
    meta: Table<'t, &'static str, u64>,
    apps: Table<'t, &'static str, &'static [u8]>,
    processes: Table<'t, (&'static str, &'static str), &'static [u8]>,
    changed: Changed,
}

/// What a transaction has changed, as far as that matters to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Changed {
    Nothing,
    /// Only what the journal carries, or what may be lost with a crash: the end of the transaction is not waited for.
    Records,
    /// What only the end of the transaction makes durable.
    Else,
}

impl Ledger<'_> {
    /// Runs `work` in a transaction. What it changed is durable when this returns; whether there was anything.
    ///
    /// # Errors
    /// Those of `work`, after which nothing has happened, and those of the database, after which it is
    /// unknown.
    pub(super) fn once(
        database: &Database,
        path: &Path,
        cached: &mut Apps,
        work: impl FnOnce(&mut Ledger<'_>) -> Result<(), SchedError>,
    ) -> Result<bool, SchedError> {
        let mut transaction = database.begin_write().at(path)?;
        let mut ledger = Ledger {
            path,
            cached,
            records: Vec::new(),
            meta: transaction.open_table(META).at(path)?,
            apps: transaction.open_table(APPS).at(path)?,
            processes: transaction.open_table(PROCESSES).at(path)?,
            changed: Changed::Nothing,
        };
        let outcome = work(&mut ledger).and_then(|()| ledger.write_apps());
        let has_changed = ledger.changed != Changed::Nothing;
        drop(ledger);
        match outcome {
            Ok(()) if has_changed => {
                transaction.set_durability(Durability::Immediate).at(path)?;
                transaction.commit().at(path).map(|()| true)
            }
            other => transaction.abort().at(path).and(other).map(|()| false),
        }
    }

    /// Refuses a database of a newer release; marks a new one, and one of an older release.
    pub(super) fn check_format(&mut self) -> Result<(), SchedError> {
        match self.number("format")? {
            Some(FORMAT) => Ok(()),
            Some(found) if found > FORMAT => {
                Err(SchedError::NewerFormat { path: self.path.to_owned(), found, supported: FORMAT })
            }
            _ => self.set_number("format", FORMAT),
        }
    }

    /// The generation of the journal that is to be read on top of what is stored; `None` for a database that never had one.
    pub(super) fn generation(&mut self) -> Result<Option<u64>, SchedError> {
        self.number("journal")
    }

    /// Says that this transaction has all that the journal had, and which generation is read on top of it.
    pub(super) fn set_generation(&mut self, generation: u64) -> Result<(), SchedError> {
        self.set_number("journal", generation)
    }

    /// Takes over what was journaled: in the order in which it was, on top of what was stored when that generation began.
    pub(super) fn replay(&mut self, records: Vec<ProcessRecord>) -> Result<(), SchedError> {
        for record in records {
            if self.process(&record.app, &record.process)?.is_none() {
                self.add_process(&record.app)?;
            }
            let last = self.number("epoch")?.unwrap_or(0);
            self.set_number("epoch", last.max(record.epoch.get()))?;
            self.put_process(&record)?;
        }
        Ok(())
    }

    /// Whether the transaction has changed anything.
    pub(super) fn has_changed(&self) -> bool {
        self.changed != Changed::Nothing
    }

    /// Whether it has to end before what it changed is durable.
    pub(super) fn must_end(&self) -> bool {
        self.changed == Changed::Else
    }

    /// What the journal has to carry before the requests since the last time are answered.
    pub(super) fn take_records(&mut self) -> Vec<ProcessRecord> {
        std::mem::take(&mut self.records)
    }

    /// Ends what dead owners left unfinished.
    pub(super) fn recover(&mut self) -> Result<(), SchedError> {
        for mut record in self.list(None)? {
            if record.phase.is_owned() {
                record.phase = record.phase.after(unstarted(&record))?;
                self.put_process(&record)?;
            }
        }
        Ok(())
    }

    pub(super) fn deploy(
        &mut self,
        app: &AppName,
        image: &ImageRecord,
        limits: &Limits,
    ) -> Result<(), SchedError> {
        let before = self.app_row(app)?.cloned();
        let processes = before.as_ref().map_or(0, |row| row.processes);
        let previous = before.and_then(|row| {
            // The same image again is no step away from the one before it.
            if row.image.image == image.image { row.previous } else { Some(row.image.image) }
        });
        let need = Need { memory: limits.memory, state: limits.state };
        let image = Arc::new(image.clone());
        let row = AppRow { image, previous, max_processes: limits.processes, need, processes };
        self.cached.0.insert(app.clone(), Cached { row, is_written: false });
        self.changed = Changed::Else;
        Ok(())
    }

    pub(super) fn image_of(&mut self, app: &AppName) -> Result<ImageRecord, SchedError> {
        Ok(ImageRecord::clone(&self.app(app)?.image))
    }

    pub(super) fn images(&mut self) -> Result<Vec<ImageUse>, SchedError> {
        let mut uses: BTreeMap<ImageId, ImageUse> = BTreeMap::new();
        for (app, row) in self.app_rows()? {
            if let Some(previous) = row.previous {
                of_image(&mut uses, previous).previous_of.push(app.clone());
            }
            of_image(&mut uses, row.image.image).apps.push(app);
        }
        for record in self.list(None)? {
            let used = of_image(&mut uses, record.image);
            used.processes += 1;
            used.running += u64::from(record.phase.is_owned());
        }
        Ok(uses.into_values().collect())
    }

    pub(super) fn apps(&mut self) -> Result<Vec<AppRecord>, SchedError> {
        let record = |(app, row): (AppName, AppRow)| AppRecord {
            app,
            image: row.image.image,
            processes: row.processes,
        };
        Ok(self.app_rows()?.into_iter().map(record).collect())
    }

    fn app_rows(&mut self) -> Result<Vec<(AppName, AppRow)>, SchedError> {
        self.write_apps()?;
        let mut rows = Vec::new();
        for entry in self.apps.iter().at(self.path)? {
            let (key, value) = entry.at(self.path)?;
            let app = AppName::new(key.value()).map_err(|error| self.bad_key(key.value(), &error))?;
            rows.push((app, decode(self.path, key.value(), value.value())?));
        }
        Ok(rows)
    }

    /// `nodes`: where it may run; empty for a term that runs nothing.
    pub(super) fn claim(
        &mut self,
        app: &AppName,
        process: &ProcessName,
        create: Create,
        nodes: &[NodeView],
    ) -> Result<Claim, SchedError> {
        let row = self.app(app)?.clone();
        let existing = match (self.process(app, process)?, create) {
            (Some(_), Create::Must) => {
                return Err(SchedError::ProcessExists { app: app.clone(), process: process.clone() });
            }
            (None, Create::Never) => return Err(unknown_process(app, process)),
            (None, _) if row.processes >= row.max_processes => {
                return Err(SchedError::TooManyProcesses { app: app.clone(), limit: row.max_processes });
            }
            (existing, _) => existing,
        };
        if !nodes.is_empty() {
            let seed = self.number("epoch")?.unwrap_or(0);
            place(&row.need, nodes, seed)?;
        }
        let record = match existing {
            Some(record) => record,
            None => {
                self.add_process(app)?;
                newborn(app, process, &row.image)
            }
        };
        self.begin_term(record, row.image)
    }

    pub(super) fn resting(&mut self, app: &AppName, most: usize) -> Result<Vec<ProcessName>, SchedError> {
        let mut names = Vec::new();
        self.visit(Some(app), |record| {
            if names.len() < most && matches!(record.phase, Phase::Placed | Phase::Swapped) {
                names.push(record.process);
            }
            names.len() < most
        })?;
        Ok(names)
    }

    fn begin_term(
        &mut self,
        mut record: ProcessRecord,
        image: Arc<ImageRecord>,
    ) -> Result<Claim, SchedError> {
        let phase = record.phase.after(Event::Claim)?;
        let epoch = self.next_epoch()?;
        let born = *record.born.get_or_insert(epoch);
        let origin = match record.home {
            Home::Nowhere => Origin::New { born },
            Home::Local => Origin::Local,
            Home::Swapped { epoch } => Origin::Swapped { epoch },
        };
        record.phase = phase;
        record.epoch = epoch;
        record.image = image.image;
        record.failure = None;
        self.put_process(&record)?;
        Ok(Claim { epoch, image, origin, born, durable: record.durable })
    }

    /// One counter for everything, never set back: the simplest thing of which "unique, and growing, for
    /// ever" is true.
    fn next_epoch(&mut self) -> Result<Epoch, SchedError> {
        let last = Epoch::new(self.number("epoch")?.unwrap_or(0));
        let used_up =
            || SchedError::Store { path: self.path.to_owned(), why: "its epochs are used up".to_owned() };
        let next = last.next().ok_or_else(used_up)?;
        self.set_number("epoch", next.get())?;
        Ok(next)
    }

    pub(super) fn settled(
        &mut self,
        app: &AppName,
        process: &ProcessName,
        epoch: Epoch,
        settled: Settled,
    ) -> Result<(), SchedError> {
        let mut record = self.get(app, process)?;
        if record.epoch != epoch {
            return Err(SchedError::StaleEpoch { given: epoch, current: record.epoch });
        }
        let was = record.phase;
        record.phase = was.after(event_of(&settled))?;
        // State that lies on the node is found there without this, so nothing is lost with it.
        let trace = settled == Settled::Active && !matches!(record.home, Home::Swapped { .. });
        match settled {
            Settled::Active => record.home = Home::Local,
            Settled::Draining => {}
            // A start that was given up has not touched the state: it is what and where it was. That more of it is durable may be news.
            Settled::Stopped { durable, .. } if was == Phase::Starting => {
                record.phase = was.after(unstarted(&record))?;
                note_durable(&mut record, durable);
            }
            Settled::Stopped { bytes, commit, durable } => note_state(&mut record, bytes, commit, durable),
            Settled::Swapped { bytes, commit, durable } => {
                note_state(&mut record, bytes, commit, durable);
                record.home = Home::Swapped { epoch };
            }
            Settled::Failed { problem, durable } => {
                record.failure = Some(problem);
                note_durable(&mut record, durable);
            }
            Settled::Deleted => return self.remove(&record),
        }
        if trace { self.write_process(&record) } else { self.put_process(&record) }
    }

    pub(super) fn list(&mut self, app: Option<&AppName>) -> Result<Vec<ProcessRecord>, SchedError> {
        let mut records = Vec::new();
        self.visit(app, |record| {
            records.push(record);
            true
        })?;
        Ok(records)
    }

    /// Hands out the processes of one application, or of all, in the order of their names, until `take` wants no more.
    fn visit(
        &mut self,
        app: Option<&AppName>,
        mut take: impl FnMut(ProcessRecord) -> bool,
    ) -> Result<(), SchedError> {
        if let Some(app) = app {
            self.app(app)?;
        }
        let name = app.map(AppName::as_str);
        let range = (name.unwrap_or(""), "")..(name.unwrap_or(AFTER_NAMES), AFTER_NAMES);
        for entry in self.processes.range(range).at(self.path)? {
            let (key, value) = entry.at(self.path)?;
            let (app, process) = key.value();
            if !take(decode(self.path, format_args!("{app}/{process}"), value.value())?) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn get(&mut self, app: &AppName, process: &ProcessName) -> Result<ProcessRecord, SchedError> {
        match self.process(app, process)? {
            Some(record) => Ok(record),
            None => Err(self.app(app).err().unwrap_or_else(|| unknown_process(app, process))),
        }
    }

    pub(super) fn delete(
        &mut self,
        app: &AppName,
        process: &ProcessName,
    ) -> Result<ProcessRecord, SchedError> {
        let mut record = self.get(app, process)?;
        let phase = record.phase.after(Event::Delete)?;
        self.remove(&record)?;
        record.phase = phase;
        Ok(record)
    }

    fn remove(&mut self, record: &ProcessRecord) -> Result<(), SchedError> {
        self.count_processes(&record.app, |processes| processes.saturating_sub(1))?;
        self.processes.remove((record.app.as_str(), record.process.as_str())).at(self.path)?;
        self.changed = Changed::Else;
        Ok(())
    }

    fn add_process(&mut self, app: &AppName) -> Result<(), SchedError> {
        self.count_processes(app, |processes| processes + 1)
    }

    /// The count is written with the transaction; that a process is new says its own record.
    fn count_processes(&mut self, app: &AppName, change: fn(u64) -> u64) -> Result<(), SchedError> {
        self.app(app)?;
        if let Some(cached) = self.cached.0.get_mut(app) {
            cached.row.processes = change(cached.row.processes);
            cached.is_written = false;
        }
        Ok(())
    }

    fn app(&mut self, app: &AppName) -> Result<&AppRow, SchedError> {
        self.app_row(app)?.ok_or_else(|| SchedError::UnknownApp { app: app.clone() })
    }

    fn app_row(&mut self, app: &AppName) -> Result<Option<&AppRow>, SchedError> {
        if !self.cached.0.contains_key(app) {
            let Some(value) = self.apps.get(app.as_str()).at(self.path)? else { return Ok(None) };
            let row = decode(self.path, app.as_str(), value.value())?;
            self.cached.0.insert(app.clone(), Cached { row, is_written: true });
        }
        Ok(self.cached.0.get(app).map(|cached| &cached.row))
    }

    /// Writes the applications that were changed.
    fn write_apps(&mut self) -> Result<(), SchedError> {
        for (app, cached) in self.cached.0.iter_mut().filter(|(_, cached)| !cached.is_written) {
            let bytes = encode(self.path, app.as_str(), &cached.row)?;
            self.apps.insert(app.as_str(), bytes.as_slice()).at(self.path)?;
            cached.is_written = true;
        }
        Ok(())
    }

    fn process(&mut self, app: &AppName, process: &ProcessName) -> Result<Option<ProcessRecord>, SchedError> {
        let value = self.processes.get((app.as_str(), process.as_str())).at(self.path)?;
        value.map(|value| decode(self.path, format_args!("{app}/{process}"), value.value())).transpose()
    }

    /// Writes what has to be durable.
    fn put_process(&mut self, record: &ProcessRecord) -> Result<(), SchedError> {
        self.records.push(record.clone());
        self.write_process(record)
    }

    /// Writes a trace: what may be lost with a crash. It goes to the disk when the transaction ends.
    fn write_process(&mut self, record: &ProcessRecord) -> Result<(), SchedError> {
        let key = (record.app.as_str(), record.process.as_str());
        let bytes = encode(self.path, format_args!("{}/{}", key.0, key.1), record)?;
        self.processes.insert(key, bytes.as_slice()).at(self.path)?;
        self.changed = self.changed.max(Changed::Records);
        Ok(())
    }

    fn number(&mut self, key: &str) -> Result<Option<u64>, SchedError> {
        Ok(self.meta.get(key).at(self.path)?.map(|value| value.value()))
    }

    fn set_number(&mut self, key: &str, number: u64) -> Result<(), SchedError> {
        self.meta.insert(key, number).at(self.path)?;
        // Every epoch is in the record of the claim that it was handed out with.
        let carried = if key == "epoch" { Changed::Records } else { Changed::Else };
        self.changed = self.changed.max(carried);
        Ok(())
    }

    fn bad_key(&self, key: &str, error: &crate::NameError) -> SchedError {
        SchedError::Corrupt {
            path: self.path.to_owned(),
            why: format!("the key {key:?} is no name ({error})"),
        }
    }
}

fn of_image(uses: &mut BTreeMap<ImageId, ImageUse>, image: ImageId) -> &mut ImageUse {
    uses.entry(image).or_insert_with(|| ImageUse {
        image,
        apps: Vec::new(),
        previous_of: Vec::new(),
        running: 0,
        processes: 0,
    })
}

fn event_of(settled: &Settled) -> Event {
    match settled {
        Settled::Active => Event::Activate,
        Settled::Draining => Event::Drain,
        Settled::Stopped { .. } => Event::Stop,
        Settled::Swapped { .. } => Event::SwapOut,
        Settled::Failed { .. } => Event::Fail,
        Settled::Deleted => Event::Delete,
    }
}

/// The event that puts a process back to where its state is. A start from the swap store does not move the
/// state before the process is active, and no reply leaves before that.
fn unstarted(record: &ProcessRecord) -> Event {
    if matches!(record.home, Home::Swapped { .. }) { Event::SwapOut } else { Event::Stop }
}

fn note_state(record: &mut ProcessRecord, bytes: u64, commit: u64, durable: u64) {
    record.state_bytes = bytes;
    record.commit = commit;
    note_durable(record, durable);
}

/// Never less: what was durable stays so.
fn note_durable(record: &mut ProcessRecord, durable: u64) {
    record.durable = record.durable.max(durable);
}

fn newborn(app: &AppName, process: &ProcessName, image: &ImageRecord) -> ProcessRecord {
    ProcessRecord {
        app: app.clone(),
        process: process.clone(),
        phase: Phase::Placed,
        epoch: Epoch::NONE,
        born: None,
        home: Home::Nowhere,
        image: image.image,
        commit: 0,
        durable: 0,
        state_bytes: 0,
        failure: None,
    }
}

fn unknown_process(app: &AppName, process: &ProcessName) -> SchedError {
    SchedError::UnknownProcess { app: app.clone(), process: process.clone() }
}

fn encode(path: &Path, what: impl fmt::Display, value: &impl Serialize) -> Result<Vec<u8>, SchedError> {
    serde_json::to_vec(value).map_err(|error| undecodable(path, what, &error))
}

fn decode<T: DeserializeOwned>(path: &Path, what: impl fmt::Display, bytes: &[u8]) -> Result<T, SchedError> {
    serde_json::from_slice(bytes).map_err(|error| undecodable(path, what, &error))
}
