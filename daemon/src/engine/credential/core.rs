//! The state that the handle of a credential shares with its actor: the published snapshot, and the actor's inbox.
//!
//! An actor with nothing to do rests: it has no task, and costs the memory of its state and an alarm. It is stored in its inbox
//! then. A command or the alarm takes the actor out of the inbox and runs it, in a task if that takes time. So at most one task
//! has the actor.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::published::Published;
use super::{ActorContext, Schedule};
use crate::clock::{Alarm, AtomicInstant, Sleeper};
use crate::engine::actor::Command;
use crate::engine::throttle::ClientThrottle;
use crate::store::RecordWriter;

/// With so many commands in the inbox, further ones for which no caller waits are dropped: the actor is about to act anyway.
const HINTS_MAX: usize = 64;

/// A resting actor.
pub(in crate::engine) trait Resting: Send {
    /// Runs the actor until it rests again, in a task if that takes time.
    fn wake(self: Box<Self>, core: Arc<Core>);
}

#[derive(Debug)]
pub(in crate::engine) struct Core {
    pub(in crate::engine) context: Arc<ActorContext>,
    pub(in crate::engine) throttle: Arc<ClientThrottle>,
    pub(in crate::engine) writer: RecordWriter,
    pub(in crate::engine) published: Published,
    pub(in crate::engine) last_used: AtomicInstant,
    /// Callers that wait for a token.
    waiting: AtomicU32,
    /// Never locked across an await, or while the actor acts.
    inbox: Mutex<Inbox>,
}

struct Inbox {
    stage: Stage,
    schedule: Schedule,
    /// Whether a reload has changed `schedule` and the actor has not seen that yet.
    is_rescheduled: bool,
    /// Whether the actor is to end after the request that is under way.
    is_stopped: bool,
    /// Whether its request is to end too, because the credential is not configured any more.
    is_discarded: bool,
}

enum Stage {
    Resting {
        actor: Box<dyn Resting>,
        /// When the rest ends by itself.
        alarm: Option<Alarm>,
    },
    /// The actor runs, has ended, or has not rested yet.
    Acting(Acting),
}

#[derive(Default)]
struct Acting {
    /// Before the queue grows, commands whose callers have given up are removed. So the limits of users bound its length.
    commands: VecDeque<Command>,
    /// Wakes the task that waits, or last waited, for a change of the inbox.
    waiting: Option<Waker>,
}

/// A caller that waits.
struct Waiting<'a>(&'a Core);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Core {
    pub(super) fn new(
        context: Arc<ActorContext>,
        throttle: Arc<ClientThrottle>,
        writer: RecordWriter,
        published: Published,
        last_used: AtomicInstant,
        schedule: Schedule,
    ) -> Arc<Self> {
        let (stage, is_rescheduled, is_stopped, is_discarded) = (Stage::default(), false, false, false);
        let inbox = Mutex::new(Inbox { stage, schedule, is_rescheduled, is_stopped, is_discarded });
        Arc::new(Self { context, throttle, writer, published, last_used, waiting: AtomicU32::new(0), inbox })
    }

    /// Counts a caller that waits, until the result is dropped.
    pub(super) fn count_waiting(&self) -> impl Drop + '_ {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed).into()
    }

    /// Sends the actor a command. Returns whether the actor accepts it.
    pub(super) fn send(self: &Arc<Self>, command: Command) -> bool {
        let mut inbox = self.lock();
        if self.published.has_ended() {
            return false;
        }
        let actor = self.take_actor(&mut inbox);
        let is_accepted = inbox.push(command);
        if is_accepted {
            self.rouse(inbox, actor);
        }
        is_accepted
    }

    pub(super) fn reschedule(self: &Arc<Self>, schedule: Schedule) {
        let mut inbox = self.lock();
        if inbox.schedule != schedule {
            inbox.schedule = schedule;
            inbox.is_rescheduled = true;
            let actor = self.take_actor(&mut inbox);
            self.rouse(inbox, actor);
        }
    }

    /// Ends the actor after the request that is under way.
    pub(super) fn stop(self: &Arc<Self>) {
        let mut inbox = self.lock();
        inbox.is_stopped = true;
        if self.take_actor(&mut inbox).is_some() {
            drop(inbox);
            self.end();
        } else {
            self.rouse(inbox, None);
        }
    }

    /// Ends the actor and its request at once and wipes its record.
    pub(super) fn discard(self: &Arc<Self>) {
        if !std::mem::replace(&mut self.lock().is_discarded, true) {
            self.writer.discard();
        }
        self.stop();
    }

    pub(in crate::engine) fn is_stopped(&self) -> bool {
        self.lock().is_stopped
    }

    pub(in crate::engine) fn schedule(&self) -> Schedule {
        self.lock().schedule.clone()
    }

    /// Stores the actor in its inbox, until a command comes or a request is due.
    pub(in crate::engine) fn rest(self: &Arc<Self>, actor: Box<dyn Resting>) {
        let mut inbox = self.lock();
        if inbox.has_news() {
            return self.rouse(inbox, Some(actor));
        }
        let due = self.published.snapshot().next_attempt;
        let alarm = due.map(|due| self.context.clock.set_alarm(due, self));
        inbox.stage = Stage::Resting { actor, alarm };
    }

    /// Ends the credential after its actor. Callers that wait get an error.
    pub(in crate::engine) fn end(&self) {
        self.published.end();
        self.lock().stage = Stage::default();
    }

    pub(in crate::engine) fn take_schedule(&self) -> Option<Schedule> {
        let mut inbox = self.lock();
        std::mem::take(&mut inbox.is_rescheduled).then(|| inbox.schedule.clone())
    }

    pub(in crate::engine) fn take_command(&self) -> Option<Command> {
        self.lock().acting()?.commands.pop_front()
    }

    /// Takes the first command if no caller waits for its answer.
    pub(in crate::engine) fn take_hint(&self) -> Option<Command> {
        let mut inbox = self.lock();
        let commands = &mut inbox.acting()?.commands;
        commands.front().filter(|command| command.is_hint())?;
        commands.pop_front()
    }

    pub(in crate::engine) fn has_command(&self) -> bool {
        self.lock().has_command()
    }

    /// Waits until the actor is stopped (`None`) or, if it `heeds_callers`, until the first command is a caller's, which stays
    /// in the inbox. Returns whether it is an operator's. Hints before it are dropped.
    pub(in crate::engine) fn interruption(
        &self,
        heeds_callers: bool,
    ) -> impl Future<Output = Option<bool>> + use<'_> {
        self.wait_for(move |inbox| {
            if inbox.is_stopped {
                return Some(None);
            }
            let commands = &mut inbox.acting().filter(|_| heeds_callers)?.commands;
            while commands.front().is_some_and(Command::is_hint) {
                commands.pop_front();
            }
            let first = commands.front()?;
            Some(Some(matches!(first, Command::Refresh { .. })))
        })
    }

    /// Waits for a command, another schedule, or a stop.
    pub(in crate::engine) async fn news(&self) {
        self.wait_for(|inbox| inbox.has_news().then_some(())).await;
    }

    /// Waits until the actor is stopped.
    pub(in crate::engine) async fn stopped(&self) {
        self.wait_for(|inbox| inbox.is_stopped.then_some(())).await;
    }

    /// Waits until the credential is discarded.
    pub(in crate::engine) async fn discarded(&self) {
        self.wait_for(|inbox| inbox.is_discarded.then_some(())).await;
    }

    async fn wait_for<T>(&self, mut find: impl FnMut(&mut Inbox) -> Option<T>) -> T {
        poll_fn(|context| {
            let mut inbox = self.lock();
            let found = find(&mut inbox);
            if let (Some(acting), None) = (inbox.acting(), &found) {
                acting.waiting = Some(context.waker().clone());
            }
            found.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Runs `actor`, or else wakes the actor's task, because the inbox has changed.
    fn rouse(self: &Arc<Self>, mut inbox: MutexGuard<'_, Inbox>, actor: Option<Box<dyn Resting>>) {
        let waiting = inbox.acting().and_then(|acting| acting.waiting.take());
        drop(inbox);
        if let Some(actor) = actor {
            actor.wake(Arc::clone(self));
        } else if let Some(task) = waiting {
            task.wake();
        }
    }

    /// Takes the actor out of the inbox, if it rests.
    fn take_actor(&self, inbox: &mut Inbox) -> Option<Box<dyn Resting>> {
        match std::mem::take(&mut inbox.stage) {
            Stage::Resting { actor, alarm } => {
                if let Some(alarm) = alarm {
                    self.context.clock.cancel_alarm(alarm);
                }
                Some(actor)
            }
            acting @ Stage::Acting(_) => {
                inbox.stage = acting;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The alarm of a resting actor rings when a request is due.
impl Sleeper for Core {
    fn wake(self: Arc<Self>) {
        let mut inbox = self.lock();
        let actor = self.take_actor(&mut inbox);
        self.rouse(inbox, actor);
    }
}

impl Inbox {
    fn has_news(&self) -> bool {
        self.is_stopped || self.is_rescheduled || self.has_command()
    }

    fn has_command(&self) -> bool {
        matches!(&self.stage, Stage::Acting(acting) if !acting.commands.is_empty())
    }

    fn acting(&mut self) -> Option<&mut Acting> {
        match &mut self.stage {
            Stage::Acting(acting) => Some(acting),
            Stage::Resting { .. } => None,
        }
    }

    /// Adds a command for an actor that acts. Returns whether there is room for it.
    fn push(&mut self, command: Command) -> bool {
        let Some(Acting { commands, .. }) = self.acting() else { return false };
        if command.is_hint() && commands.len() >= HINTS_MAX {
            return false;
        }
        if commands.len() == commands.capacity() {
            commands.retain(|command| !command.is_abandoned());
        }
        commands.push_back(command);
        true
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self::Acting(Acting::default())
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("schedule", &self.schedule).finish_non_exhaustive()
    }
}
