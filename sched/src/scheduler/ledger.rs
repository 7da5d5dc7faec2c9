//! What is remembered, and the rules for changing it: one value for the length of one transaction.
//!
//! Every method looks first and writes last, so that a refusal has written nothing and the requests beside it
//! can be made durable.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format`, `epoch` | a number: the version of this layout; the last epoch that was handed out |
//! | `apps` | application | JSON: its image and the number of its processes |
//! | `processes` | application, process | JSON: a [`ProcessRecord`] |

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

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

/// The version of this layout. A release reads its own and older ones.
const FORMAT: u64 = 1;
/// Sorts behind every name.
const AFTER_NAMES: &str = "~";

/// What is stored of an application.
#[derive(Debug, Serialize, Deserialize)]
struct AppRow {
    image: ImageRecord,
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

/// The tables, open for one transaction.
pub(super) struct Ledger<'t> {
    path: &'t Path,
    meta: Table<'t, &'static str, u64>,
    apps: Table<'t, &'static str, &'static [u8]>,
    processes: Table<'t, (&'static str, &'static str), &'static [u8]>,
    changed: Changed,
}

/// What a transaction has changed, as far as that matters to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Changed {
    Nothing,
    /// Only what may be lost with a crash; it goes to the disk with whatever is written next.
    Traces,
    Facts,
}

impl Ledger<'_> {
    /// Runs `work` in a transaction. What it changed is durable when this returns, but for traces, which every later request sees
    /// and a crash may take back.
    ///
    /// # Errors
    /// Those of `work`, after which nothing has happened, and those of the database, after which it is
    /// unknown.
    pub(super) fn once(
        database: &Database,
        path: &Path,
        work: impl FnOnce(&mut Ledger<'_>) -> Result<(), SchedError>,
    ) -> Result<(), SchedError> {
        let mut transaction = database.begin_write().at(path)?;
        let mut ledger = Ledger {
            path,
            meta: transaction.open_table(META).at(path)?,
            apps: transaction.open_table(APPS).at(path)?,
            processes: transaction.open_table(PROCESSES).at(path)?,
            changed: Changed::Nothing,
        };
        let outcome = work(&mut ledger);
        let changed = ledger.changed;
        drop(ledger);
        match outcome {
            Ok(()) if changed != Changed::Nothing => {
                let durability =
                    if changed == Changed::Facts { Durability::Immediate } else { Durability::None };
                transaction.set_durability(durability).at(path)?;
                transaction.commit().at(path)
            }
            other => transaction.abort().at(path).and(other),
        }
    }

    /// Refuses a database of a newer release; marks a new one.
    pub(super) fn check_format(&mut self) -> Result<(), SchedError> {
        match self.number("format")? {
            Some(FORMAT) => Ok(()),
            None => self.set_number("format", FORMAT),
            Some(found) => {
                Err(SchedError::NewerFormat { path: self.path.to_owned(), found, supported: FORMAT })
            }
        }
    }

    /// Has this transaction, and with it all traces, written to the disk.
    pub(super) fn insist(&mut self) {
        self.changed = Changed::Facts;
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
        let before = self.app_row(app)?;
        let processes = before.as_ref().map_or(0, |row| row.processes);
        let previous = before.and_then(|row| {
            // The same image again is no step away from the one before it.
            if row.image.image == image.image { row.previous } else { Some(row.image.image) }
        });
        let need = Need { memory: limits.memory, state: limits.state };
        let row = AppRow { image: image.clone(), previous, max_processes: limits.processes, need, processes };
        self.put_app(app, &row)
    }

    pub(super) fn image_of(&mut self, app: &AppName) -> Result<ImageRecord, SchedError> {
        Ok(self.app(app)?.image)
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
        let mut row = self.app(app)?;
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
                row.processes += 1;
                self.put_app(app, &row)?;
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

    fn begin_term(&mut self, mut record: ProcessRecord, image: ImageRecord) -> Result<Claim, SchedError> {
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
        self.write_process(&record, if trace { Changed::Traces } else { Changed::Facts })
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
        let mut row = self.app(&record.app)?;
        row.processes = row.processes.saturating_sub(1);
        self.processes.remove((record.app.as_str(), record.process.as_str())).at(self.path)?;
        self.changed = Changed::Facts;
        self.put_app(&record.app, &row)
    }

    fn app(&mut self, app: &AppName) -> Result<AppRow, SchedError> {
        self.app_row(app)?.ok_or_else(|| SchedError::UnknownApp { app: app.clone() })
    }

    fn app_row(&mut self, app: &AppName) -> Result<Option<AppRow>, SchedError> {
        let value = self.apps.get(app.as_str()).at(self.path)?;
        value.map(|value| decode(self.path, app.as_str(), value.value())).transpose()
    }

    fn put_app(&mut self, app: &AppName, row: &AppRow) -> Result<(), SchedError> {
        let bytes = encode(self.path, app.as_str(), row)?;
        self.apps.insert(app.as_str(), bytes.as_slice()).at(self.path)?;
        self.changed = Changed::Facts;
        Ok(())
    }

    fn process(&mut self, app: &AppName, process: &ProcessName) -> Result<Option<ProcessRecord>, SchedError> {
        let value = self.processes.get((app.as_str(), process.as_str())).at(self.path)?;
        value.map(|value| decode(self.path, format_args!("{app}/{process}"), value.value())).transpose()
    }

    fn put_process(&mut self, record: &ProcessRecord) -> Result<(), SchedError> {
        self.write_process(record, Changed::Facts)
    }

    fn write_process(&mut self, record: &ProcessRecord, changed: Changed) -> Result<(), SchedError> {
        let key = (record.app.as_str(), record.process.as_str());
        let bytes = encode(self.path, format_args!("{}/{}", key.0, key.1), record)?;
        self.processes.insert(key, bytes.as_slice()).at(self.path)?;
        self.changed = self.changed.max(changed);
        Ok(())
    }

    fn number(&mut self, key: &str) -> Result<Option<u64>, SchedError> {
        Ok(self.meta.get(key).at(self.path)?.map(|value| value.value()))
    }

    fn set_number(&mut self, key: &str, number: u64) -> Result<(), SchedError> {
        self.meta.insert(key, number).at(self.path)?;
        self.changed = Changed::Facts;
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
