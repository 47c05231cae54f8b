import { randomUUID } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import type { ModelId } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import { Alarm } from './alarm.ts';
import type { OfferBook } from './offer-book.ts';
import type { Session } from './session.ts';
import type { OpenGrant, SlotBoard } from './slot-board.ts';
import type { Grant } from './choice.ts';

type GrantsOptions = {
  board: SlotBoard;
  offers: OfferBook;
  grantMs: number;
  log: Log;
  /** The grant of a model that was due came to nothing. */
  onDueRefused: (model: ModelId) => void;
  kick: () => void;
};

/** The grants nobody has answered yet: each is taken or declined, or goes back when its time or its session is over. */
export class Grants {
  readonly #options: GrantsOptions;
  readonly #sessions = new Map<string, Session>();

  constructor(options: GrantsOptions) {
    this.#options = options;
  }

  /** Binds the slot and tells the session. */
  issue(session: Session, { slotId, line, gpus, startsInMs, isDue, isLead }: Grant): void {
    const { board, offers, grantMs } = this.#options;
    const grant: OpenGrant = {
      kind: 'grant',
      grantId: randomUUID(),
      sessionId: session.sessionId,
      tokenId: session.tokenId,
      lineId: line.lineId,
      model: line.model,
      class: line.class,
      gpus,
      isDue,
      isLead,
      // A grant ahead starts later too, but its model is there: it is no new turn.
      bringsModelIn: isDue || (startsInMs > 0 && !isLead),
      grantedMs: performance.now(),
      expectedMs: line.workMs / Math.max(1, line.count),
      alarm: new Alarm(),
    };
    this.#sessions.set(grant.grantId, session);
    board.enter(slotId, grant);
    offers.granted(line.lineId, grant.grantedMs);
    grant.alarm.set(grantMs, () => this.#expire(slotId, grant));
    session.notify({
      method: 'slot.grant',
      params: { grantId: grant.grantId, slotId, model: line.model, class: line.class, startsInMs },
    });
  }

  /** The open grant of this id, if it is this session's. */
  find(session: Session, grantId: string): { slotId: string; grant: OpenGrant } | undefined {
    return this.#options.board
      .grants()
      .find(({ grant }) => grant.grantId === grantId && grant.sessionId === session.sessionId);
  }

  /** A job takes its place on the slot. */
  taken(grant: OpenGrant): void {
    this.#end(grant);
  }

  /** The session wants nothing of it; its line is not granted again before it is sent again. */
  decline(session: Session, grantId: string): void {
    const open = this.find(session, grantId);
    if (open === undefined) return; // it went back already
    this.#end(open.grant);
    this.#options.board.leave(open.slotId, open.grant);
    this.#options.offers.declined(open.grant.lineId);
    this.#refused(open.grant);
    this.#options.kick();
  }

  /** Takes back what is meant. */
  withdraw(isMeant: (open: { slotId: string; grant: OpenGrant }) => boolean): void {
    for (const open of this.#options.board.grants().filter(isMeant)) {
      this.#refused(open.grant);
      this.#revoke(open.slotId, open.grant);
    }
  }

  #expire(slotId: string, grant: OpenGrant): void {
    const { log, offers, kick } = this.#options;
    log.info({ event: 'grant-expired', slotId, grantId: grant.grantId });
    const session = this.#sessions.get(grant.grantId);
    if (session !== undefined) session.isMuted = true;
    offers.expired(grant.lineId);
    this.#refused(grant);
    this.#revoke(slotId, grant);
    kick();
  }

  #revoke(slotId: string, grant: OpenGrant): void {
    const session = this.#sessions.get(grant.grantId);
    this.#end(grant);
    this.#options.board.leave(slotId, grant);
    session?.notify({ method: 'slot.revoke', params: { grantId: grant.grantId } });
  }

  #end(grant: OpenGrant): void {
    grant.alarm.clear();
    this.#sessions.delete(grant.grantId);
  }

  #refused({ isDue, model }: OpenGrant): void {
    if (isDue) this.#options.onDueRefused(model);
  }
}
