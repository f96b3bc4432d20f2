//! DNS-01: runs the operator's program that publishes a TXT record (RFC 8555 §8.4).
//!
//! In: a name and a value. The program is started as `HOOK present|cleanup _acme-challenge.NAME. VALUE`, as lego's
//! `exec` provider does, so that hooks written for it work. Out: nothing, or why it failed. What it prints on standard
//! error goes to ours. Limit: [`LIMIT`], then it is killed with all that it has started.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::time::timeout;

use super::failure::Failure;

/// Records take their time to become visible.
const LIMIT: Duration = Duration::from_mins(5);

/// What the hook is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    Present,
    Cleanup,
}

/// The record that proves `name`, which may be a wildcard.
pub fn record(name: &str) -> String {
    format!("_acme-challenge.{}.", name.strip_prefix("*.").unwrap_or(name))
}

/// Kills a hook and what it has started, unless it has ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL); // what is gone already is no loss
        }
    }
}

/// # Errors
/// It can't be started, ends with another code than 0, or does not end.
pub async fn run(hook: &Path, action: Action, record: &str, value: &str) -> Result<(), Failure> {
    const ADVICE: &str = "see what the hook says on standard error, and run it by hand";
    let failed = |why: String| {
        let action = <&str>::from(action);
        Failure::refused(format!("{} {action} {record}: {why}", hook.display()), ADVICE)
    };
    let mut child = Command::new(hook)
        .args([action.into(), record, value])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    // Dropped before the child, whose number is its own until then.
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let ended = timeout(LIMIT, child.wait()).await;
    if let Ok(Ok(_)) = ended {
        group.0 = None;
    }
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(failed(format!("ended with {status}"))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("did not end within {LIMIT:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_wildcard_is_proved_where_its_domain_is() {
        assert_eq!(record("mail.example.org"), "_acme-challenge.mail.example.org.");
        assert_eq!(record("*.example.org"), "_acme-challenge.example.org.");
    }

    #[tokio::test]
    async fn a_hook_gets_its_arguments_and_its_failure_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (hook, log) = (dir.path().join("hook"), dir.path().join("log"));
        let script = format!("#!/bin/sh\necho \"$@\" >>{}\n[ $1 = present ]\n", log.display());
        fs::write(&hook, script).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        run(&hook, Action::Present, "_acme-challenge.a.", "v").await.unwrap();
        let failure = run(&hook, Action::Cleanup, "_acme-challenge.a.", "v").await.unwrap_err();
        assert!(
            failure.text.contains("hook cleanup _acme-challenge.a.: ended with"),
            "{failure:?}"
        );
        let said = fs::read_to_string(&log).unwrap();
        assert_eq!(said, "present _acme-challenge.a. v\ncleanup _acme-challenge.a. v\n");
        let missing = run(&dir.path().join("no"), Action::Present, "a.", "v").await.unwrap_err();
        assert!(missing.text.contains("cannot be started"));
    }

    #[tokio::test]
    async fn what_a_hook_has_started_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (hook, started) = (dir.path().join("hook"), dir.path().join("started"));
        let (new, done) = (dir.path().join("new").display().to_string(), started.display());
        let script = format!("#!/bin/sh\nsleep 1000 &\necho $! >{new}\nmv {new} {done}\nwait\n");
        fs::write(&hook, script).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let wait = || tokio::time::sleep(Duration::from_millis(5));
        let running = async {
            while !started.exists() {
                wait().await;
            }
        };
        tokio::select! {
            ended = run(&hook, Action::Present, "a.", "v") => panic!("{ended:?}"),
            () = running => {} // and the hook is dropped
        }
        let stat = format!("/proc/{}/stat", fs::read_to_string(&started).unwrap().trim());
        // Gone, or dead and not yet buried by whoever inherited it.
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            wait().await;
        }
    }
}
