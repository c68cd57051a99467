//! `meshctl apply`

mod execute;
mod requests;
mod source;

use std::collections::BTreeSet;

use mesh_proto::{Problem, ProblemKind, v1};
use serde::Serialize;

use super::confirm::confirm;
use super::results::in_form;
use crate::apply::{self, Change, Conflict, Declared, Ignored, Listed, Plan, Step, Warning, Why};
use crate::cli::apply::Apply;
use crate::client::{Client, incomplete};
use crate::format::Format;
use crate::report::{self, Report};
use crate::view::unusable;

/// What `apply` did, or would do.
#[derive(Debug, Serialize)]
struct Applied {
    project: String,
    dry_run: bool,
    changes: Vec<Change>,
    ignored: Vec<Ignored>,
    warnings: Vec<Warning>,
}

pub(super) async fn run(client: &Client, asked: Apply, format: Option<Format>) -> Report {
    let declared = match source::declared(&asked) {
        Ok(declared) => declared,
        Err(problem) => return problem.into(),
    };
    let mut notes = notes(&declared, format);
    let (plan, listed, mut unchecked) = match planned(client, &asked, &declared).await {
        Err(problems) => return Report { notes, problems, ..Report::default() },
        Ok(planned) => planned,
    };
    notes.extend(plan.warnings.iter().map(|warning| report::warning(warning, format)));
    let everything = format!("This removes all services or all networks of project {}.", plan.project);
    if plan.removes_all && !asked.yes {
        if asked.dry_run {
            notes.push(report::warning(&format!("{everything} Applying it requires --yes."), format));
        } else if let Err(problem) = confirm("apply", &everything, NEEDS_YES) {
            return Report { notes, problems: vec![problem], ..Report::default() };
        }
    }
    let (changes, problems) = if asked.dry_run {
        (plan.steps.iter().map(Step::change).collect(), Vec::new())
    } else {
        execute::all(client, plan, &listed, &mut unchecked).await
    };
    let unchecked: Vec<String> = unchecked.into_iter().collect();
    notes.extend(super::service::unchecked(&unchecked, format));
    let Declared { project, ignored, warnings, .. } = declared;
    let applied = Applied { project, dry_run: asked.dry_run, changes, ignored, warnings };
    let failed = !problems.is_empty();
    let text = in_form(&applied, format, |applied| as_text(applied, failed));
    let mut report = Report::from(text);
    report.notes = notes;
    report.problems.splice(0..0, problems);
    report
}

const NEEDS_YES: &str = "nothing was changed; see what it removes with --dry-run, then use --yes";

fn as_text(applied: &Applied, failed: bool) -> String {
    if !failed && applied.changes.is_empty() {
        return "nothing changes\n".to_owned();
    }
    let line = |change: &Change| {
        let what = change.object();
        if applied.dry_run {
            format!("would {} {what}\n", change.action)
        } else {
            format!("{}d {what}\n", change.action)
        }
    };
    applied.changes.iter().map(line).collect()
}

/// What is said besides the result: mistakes, what is without effect, and in one line what concerns
/// containers only.
fn notes(declared: &Declared, format: Option<Format>) -> Vec<String> {
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Note<'a> {
        Warning(&'a Warning),
        Ignored(&'a Ignored),
    }
    let said = |note: Note<'_>| match (format, &note) {
        (Some(Format::Json), note) => report::line(note),
        (_, Note::Warning(warning)) => format!("warning: {warning}\n"),
        (_, Note::Ignored(ignored)) => format!("ignored: {ignored}\n"),
    };
    let mut notes: Vec<String> =
        declared.warnings.iter().map(|warning| said(Note::Warning(warning))).collect();
    let each = declared.ignored.iter().filter(|key| matches!(key.why, Why::NoUse | Why::Inactive(_)));
    notes.extend(each.map(|key| said(Note::Ignored(key))));
    notes.extend(containers(&declared.ignored, format));
    notes
}

/// The keys that concern containers only, each once.
fn containers(ignored: &[Ignored], format: Option<Format>) -> Option<String> {
    #[derive(Serialize)]
    struct Keys<'a> {
        ignored_keys: &'a BTreeSet<&'a str>,
    }
    let key = |ignored: &'_ Ignored| match &ignored.why {
        Why::Container(key) => Some(key.clone()),
        _ => None,
    };
    let keys: BTreeSet<String> = ignored.iter().filter_map(key).collect();
    let keys: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    if keys.is_empty() {
        return None;
    }
    Some(match format {
        Some(Format::Json) => report::line(&Keys { ignored_keys: &keys }),
        _ => format!("ignored: {}\n", keys.into_iter().collect::<Vec<_>>().join(", ")),
    })
}

/// Plans the changes and has the managers check them all. Also returns what there is, and the nodes
/// that were away.
async fn planned(
    client: &Client,
    asked: &Apply,
    declared: &Declared,
) -> Result<(Plan, Listed, BTreeSet<String>), Vec<Problem>> {
    let listed = listed(client).await.map_err(|problem| vec![problem])?;
    let plan = apply::plan(declared, &listed, asked.prune)
        .map_err(|conflicts| conflicts.iter().map(conflict).collect::<Vec<_>>())?;
    let checked = check(client, &plan).await?;
    let unchecked = checked.unchecked_nodes.into_iter().collect();
    Ok((Plan { warnings: checked.warnings, ..plan }, listed, unchecked))
}

/// Has the managers check all changes.
async fn check(client: &Client, plan: &Plan) -> Result<v1::CheckChangesResponse, Vec<Problem>> {
    if plan.steps.is_empty() {
        return Ok(v1::CheckChangesResponse::default());
    }
    let request = requests::check(plan);
    let call = async { client.call(client.control().await?.check_changes(request)).await };
    let answer = call.await.map_err(|problem| vec![problem])?;
    if answer.faults.is_empty() {
        return Ok(answer);
    }
    let problem = |fault: v1::ChangeFault| {
        let step = usize::try_from(fault.change).ok().and_then(|index| plan.steps.get(index));
        let what = step.map_or_else(String::new, |step| format!("{}, ", step.change().path()));
        let hint = if fault.hint.is_empty() { String::new() } else { format!("; {}", fault.hint) };
        let kind = ProblemKind::named(&fault.kind);
        Problem::new(kind, format!("apply, {what}{}", fault.message))
            .hint(format!("nothing was changed{hint}"))
    };
    Err(answer.faults.into_iter().map(problem).collect())
}

async fn listed(client: &Client) -> Result<Listed, Problem> {
    let mut control = client.control().await?;
    let networks = client.call(control.list_networks(v1::ListNetworksRequest {})).await?.networks;
    let request = v1::ListServicesRequest { network: String::new() };
    let services = client.call(control.list_services(request)).await?.services;
    let networks = networks.into_iter().map(TryInto::try_into).collect::<Result<_, _>>();
    let services = services
        .into_iter()
        .map(|status| {
            status.service.ok_or_else(|| incomplete("service"))?.try_into().map_err(|e| unusable(&e))
        })
        .collect::<Result<_, Problem>>()?;
    Ok(Listed { networks: networks.map_err(|e| unusable(&e))?, services })
}

fn conflict(conflict: &Conflict) -> Problem {
    let (kind, hint) = match conflict {
        Conflict::CannotChange { .. } => (
            ProblemKind::Conflict,
            "nothing was changed; remove it first to create it again, or revert this in the file",
        ),
        Conflict::Foreign { .. } => (
            ProblemKind::Conflict,
            "nothing was changed; declare it as it is, or use another name; declare a foreign network with `external: true`",
        ),
        Conflict::PortTaken { .. } => (
            ProblemKind::Conflict,
            "nothing was changed; publish another port, or remove it from the other service",
        ),
        Conflict::NoSuchNetwork(_) => {
            (ProblemKind::NotFound, "nothing was changed; create it first: meshctl network create")
        }
    };
    Problem::new(kind, format!("apply, {conflict}")).hint(hint)
}
