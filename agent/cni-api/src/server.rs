//! Connections of the plugin: one call each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mesh_cni::call::Answer;
use mesh_cni::error::Code;
use mesh_cni::spool::Spool;
use mesh_cni::{Call, CniError, Command, version, wire};
use mesh_handle::AgentHandle;
use mesh_model::Owner;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::Config;
use crate::turns::Turns;
use crate::{add, attachments, gc, spooled, status};

/// How long the plugin may take to send its call, or to confirm a result.
const PLUGIN: Duration = Duration::from_secs(10);
/// How often the spool is looked through: a plugin may have found no agent a moment before there
/// was one.
const SPOOL: Duration = Duration::from_secs(5);

/// What the calls share.
#[derive(Debug)]
struct Shared {
    agent: Arc<dyn AgentHandle>,
    turns: Turns,
    spool: Spool,
}

/// Serves the plugin until it is cancelled. Spooled calls are carried out first.
pub async fn serve(listener: UnixListener, spool: Spool, agent: Arc<dyn AgentHandle>) {
    let shared = Arc::new(Shared { agent, turns: Turns::default(), spool });
    spooled::carry_out(&*shared.agent, &shared.turns, &shared.spool).await;
    let mut calls = JoinSet::new();
    calls.spawn(empty_spool(shared.clone()));
    loop {
        tokio::select! {
            Some(_) = calls.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let shared = shared.clone();
                    calls.spawn(async move {
                        if let Err(error) = shared.answer(stream).await {
                            tracing::debug!(%error, "a connection of the CNI plugin ended early");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the CNI plugin");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// Looks through the spool again and again.
async fn empty_spool(shared: Arc<Shared>) {
    let mut due = interval(SPOOL);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        spooled::carry_out(&*shared.agent, &shared.turns, &shared.spool).await;
    }
}

impl Shared {
    /// Carries out the call of one connection.
    async fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let call = timeout(PLUGIN, receive(&mut stream)).await??;
        let answered = match Config::parse(&call.config) {
            Ok(config) => self.carry_out(&call, &config, &mut stream).await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(Answered::Sent(sent)) => sent,
            Ok(Answered::Done) => send(&mut stream, &Answer { output: String::new(), failed: false }).await,
            Err(error) => {
                let version = version::of(&call.config).unwrap_or(version::LATEST);
                send(&mut stream, &Answer { output: error.json(version), failed: true }).await
            }
        }
    }

    async fn carry_out(
        &self,
        call: &Call,
        config: &Config,
        stream: &mut UnixStream,
    ) -> Result<Answered, CniError> {
        let agent = &*self.agent;
        match call.command {
            Command::Status => status::status(agent)?,
            Command::Gc => gc::gc(agent, config).await?,
            Command::Check => attachments::check(agent, config, &attachments::owner(call, config)?).await?,
            Command::Del => {
                let owner = attachments::owner(call, config)?;
                let _turn = self.turns.take(&owner).await;
                attachments::del(agent, &owner).await?;
            }
            Command::Add => {
                let owner = attachments::owner(call, config)?;
                spooled::carry_out(agent, &self.turns, &self.spool).await;
                // Kept until the plugin has confirmed the result, or everything is undone.
                let _turn = self.turns.take(&owner).await;
                let result = add::add(agent, call, config, &owner).await?;
                return Ok(Answered::Sent(self.hand_over(&owner, &result, stream).await));
            }
        }
        Ok(Answered::Done)
    }

    /// Sends the result of an ADD. If nobody receives it, the container is detached again.
    async fn hand_over(&self, owner: &Owner, result: &Value, stream: &mut UnixStream) -> io::Result<()> {
        let handed_over = async {
            send(stream, &Answer { output: result.to_string(), failed: false }).await?;
            timeout(PLUGIN, stream.read_u8()).await?
        };
        let error = match handed_over.await {
            Ok(wire::DONE) => return Ok(()),
            Ok(_) => io::ErrorKind::InvalidData.into(),
            Err(error) => error,
        };
        tracing::info!(%owner, %error, "detached: the runtime has not received the result of its ADD");
        if let Err(error) = attachments::del(&*self.agent, owner).await {
            tracing::warn!(%owner, %error, "cannot undo an ADD; it is undone when its namespace is gone");
        }
        Err(error)
    }
}

/// How far a call without an error has come.
enum Answered {
    /// It has its result, or sending that failed.
    Sent(io::Result<()>),
    /// It succeeded, and has no result to print.
    Done,
}

async fn receive(stream: &mut UnixStream) -> io::Result<Call> {
    let mut head = [0; wire::LENGTH];
    stream.read_exact(&mut head).await?;
    let mut body = vec![0; wire::length(head)?];
    stream.read_exact(&mut body).await?;
    match serde_json::from_slice(&body) {
        Ok(call) => Ok(call),
        Err(error) => {
            let message = format!("meshd does not understand the plugin's call: {error}");
            let error =
                CniError::new(Code::Failed, message).details("install meshd and mesh-cni of one version");
            send(stream, &Answer { output: error.json(version::LATEST), failed: true }).await?;
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

async fn send(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    stream.write_all(&wire::frame(answer)?).await
}
