import { randomUUID } from 'node:crypto';
import type { AgentJob, Notification, OfferLine, Params, Result, Role } from '../../shared/protocol.ts';
import type { JobDesk } from './job-desk.ts';

export type TokenRef = { id: string; role: Role };

export type SessionOptions = {
  token: TokenRef;
  bridgeId: string;
  notify: (notification: Notification) => void;
  /** A newer session of the same bridge came. */
  onReplaced: () => void;
};

/** What a session may ask of the exchange. */
export type SessionCalls = {
  desk: JobDesk;
  close(): void;
  offer(lines: readonly OfferLine[]): void;
  take(params: Params<'job.take'>): Promise<Result<'job.take'>>;
  decline(grantId: string): void;
  kick(): void;
};

/** One connected bridge: its offer and its grants end with it, its accepted jobs do not. Everything is under its token. */
export class Session {
  readonly sessionId: string = randomUUID();
  readonly tokenId: string;
  readonly bridgeId: string;
  readonly notify: (notification: Notification) => void;
  readonly onReplaced: () => void;
  /** It let a grant expire: none until its next message. */
  isMuted = false;
  readonly #calls: SessionCalls;

  constructor({ token, bridgeId, notify, onReplaced }: SessionOptions, calls: SessionCalls) {
    this.tokenId = token.id;
    this.bridgeId = bridgeId;
    this.notify = notify;
    this.onReplaced = onReplaced;
    this.#calls = calls;
  }

  jobs(): AgentJob[] {
    return this.#calls.desk.jobs(this.tokenId);
  }

  offer(lines: OfferLine[]): void {
    this.#calls.offer(lines);
  }

  async take(params: Params<'job.take'>): Promise<Result<'job.take'>> {
    return await this.#calls.take(params);
  }

  decline(grantId: string): void {
    this.#calls.decline(grantId);
  }

  async cancel(jobId: string): Promise<AgentJob> {
    return await this.#calls.desk.cancel(this.tokenId, jobId);
  }

  get(jobId: string): AgentJob {
    return this.#calls.desk.get(this.tokenId, jobId);
  }

  async ack(params: Params<'job.ack'>): Promise<void> {
    await this.#calls.desk.ack(this.tokenId, params);
    this.#calls.kick(); // a token over its quota may have grants again
  }

  /** Any message shows that the bridge is there. */
  touch(): void {
    if (!this.isMuted) return;
    this.isMuted = false;
    this.#calls.kick();
  }

  close(): void {
    this.#calls.close();
  }
}
