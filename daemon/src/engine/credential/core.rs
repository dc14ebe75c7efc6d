//! The state that the handle of a credential shares with its actor: the published snapshot, and the actor's inbox.
//!
//! An actor with nothing to do rests: it has no task, and costs the memory of its state and an alarm. It is stored in its inbox
//! then. A command or the alarm takes the actor out of the inbox and runs it, in a task if that takes time. So at most one task
//! has the actor.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

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
    /// Never locked across an await, or while the actor acts.
    inbox: Mutex<Inbox>,
    /// Notified when the inbox of an actor that has a task changes.
    changed: Notify,
}

struct Inbox {
    /// Before the queue grows, commands whose callers have given up are removed. So the limits of users bound its length.
    commands: VecDeque<Command>,
    schedule: Schedule,
    /// Whether a reload has changed `schedule` and the actor has not seen that yet.
    is_rescheduled: bool,
    /// Whether the actor is to end after the request that is under way.
    is_stopped: bool,
    /// Whether its request is to end too, because the credential is not configured any more.
    is_discarded: bool,
    /// The actor, while it rests.
    actor: Option<Box<dyn Resting>>,
    /// When the actor's rest ends by itself.
    alarm: Option<Alarm>,
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
        let inbox = Inbox {
            commands: VecDeque::new(),
            schedule,
            is_rescheduled: false,
            is_stopped: false,
            is_discarded: false,
            actor: None,
            alarm: None,
        };
        let (inbox, changed) = (Mutex::new(inbox), Notify::new());
        Arc::new(Self { context, throttle, writer, published, last_used, inbox, changed })
    }

    /// Sends the actor a command. Returns whether the actor accepts it.
    pub(super) fn send(self: &Arc<Self>, command: Command) -> bool {
        let mut inbox = self.lock();
        let has_room = !command.is_hint() || inbox.commands.len() < HINTS_MAX;
        if !has_room || self.published.has_ended() {
            return false;
        }
        if inbox.commands.len() == inbox.commands.capacity() {
            inbox.commands.retain(|command| !command.is_abandoned());
        }
        inbox.commands.push_back(command);
        self.rouse(inbox);
        true
    }

    pub(super) fn reschedule(self: &Arc<Self>, schedule: Schedule) {
        let mut inbox = self.lock();
        if inbox.schedule != schedule {
            inbox.schedule = schedule;
            inbox.is_rescheduled = true;
            self.rouse(inbox);
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
            self.rouse(inbox);
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
        inbox.actor = Some(actor);
        if inbox.has_news() {
            return self.rouse(inbox);
        }
        inbox.commands = VecDeque::new();
        let due = self.published.snapshot().next_attempt;
        inbox.alarm = due.map(|due| self.context.clock.set_alarm(due, self));
    }

    /// Ends the credential after its actor. Callers that wait get an error.
    pub(in crate::engine) fn end(&self) {
        self.published.end();
        self.lock().commands = VecDeque::new();
    }

    pub(in crate::engine) fn take_schedule(&self) -> Option<Schedule> {
        let mut inbox = self.lock();
        std::mem::take(&mut inbox.is_rescheduled).then(|| inbox.schedule.clone())
    }

    pub(in crate::engine) fn take_command(&self) -> Option<Command> {
        self.lock().commands.pop_front()
    }

    /// Takes the first command if no caller waits for its answer.
    pub(in crate::engine) fn take_hint(&self) -> Option<Command> {
        let commands = &mut self.lock().commands;
        commands.front().filter(|command| command.is_hint())?;
        commands.pop_front()
    }

    pub(in crate::engine) fn has_command(&self) -> bool {
        !self.lock().commands.is_empty()
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
            while heeds_callers && inbox.commands.front().is_some_and(Command::is_hint) {
                inbox.commands.pop_front();
            }
            let first = inbox.commands.front().filter(|_| heeds_callers)?;
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
        loop {
            // Created before the inbox is checked, so that no change is missed.
            let changed = self.changed.notified();
            if let Some(found) = find(&mut self.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// Runs the actor if it rests, and otherwise wakes its task, because the inbox has changed.
    fn rouse(self: &Arc<Self>, mut inbox: MutexGuard<'_, Inbox>) {
        let actor = self.take_actor(&mut inbox);
        drop(inbox);
        match actor {
            Some(actor) => actor.wake(Arc::clone(self)),
            None => self.changed.notify_waiters(),
        }
    }

    fn take_actor(&self, inbox: &mut Inbox) -> Option<Box<dyn Resting>> {
        if let Some(alarm) = inbox.alarm.take() {
            self.context.clock.cancel_alarm(alarm);
        }
        inbox.actor.take()
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The alarm of a resting actor rings when a request is due.
impl Sleeper for Core {
    fn wake(self: Arc<Self>) {
        self.rouse(self.lock());
    }
}

impl Inbox {
    fn has_news(&self) -> bool {
        self.is_stopped || self.is_rescheduled || !self.commands.is_empty()
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("schedule", &self.schedule).finish_non_exhaustive()
    }
}
