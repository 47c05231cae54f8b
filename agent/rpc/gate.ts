import type { IncomingMessage } from 'node:http';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { TokenRef } from '../job/session.ts';
import type { Audit } from './audit.ts';
import { AuthFailures } from './auth-failures.ts';
import type { ConnectionLimits } from './connection-budget.ts';
import { addressOf, ConnectionBudget } from './connection-budget.ts';
import type { Authenticate } from './peer-check.ts';
import { findToken, refusedToken } from './peer-check.ts';
import { RequestQuota } from './request-quota.ts';

export type GateOptions = {
  authenticate: Authenticate;
  audit: Audit;
  log: Log;
  connectionLimits?: ConnectionLimits | undefined;
};

/**
 * Who may pass: counts connections, failures and requests, and says no before anybody's bytes cost more than these counts.
 * A token that is known passes whatever else comes from its address: many laptops may share a tunnel.
 */
export class Gate {
  readonly connections: ConnectionBudget;
  readonly #failures = new AuthFailures();
  readonly #quota = new RequestQuota();
  readonly #options: GateOptions;

  constructor(options: GateOptions) {
    this.#options = options;
    this.connections = new ConnectionBudget(options.connectionLimits);
  }

  /** The token of a request. Throws AUTH_FAILED in one and the same text, or RATE_LIMITED. */
  async token(request: IncomingMessage): Promise<TokenRef> {
    const token = await findToken(request, this.#options.authenticate);
    if (token === undefined) throw this.#fail(request, refusedToken());
    if (this.connections.know(request.socket)) return token;
    throw new AppError('RATE_LIMITED', 'The agent has all the connections it takes. Try again in a minute.', {
      retryAfterMs: 60_000,
    });
  }

  /** One more request of this token; an error in place of its answer when there are too many. */
  refusal(tokenId: string, what: string): AppError | undefined {
    return this.#quota.refusal(tokenId, { what, nowMs: performance.now() });
  }

  forget(tokenId: string): void {
    this.#quota.forget(tokenId);
  }

  /** Runs an exchange of a code for a token. A code can be guessed, so an address that failed often is not even heard. */
  async pairing<T>(request: IncomingMessage, redeem: () => Promise<T>): Promise<T> {
    const address = addressOf(request.socket);
    const waitMs = this.#failures.blockedMs(address, performance.now());
    if (waitMs > 0) throw tooManyFailures(waitMs);
    try {
      return await redeem();
    } catch (error) {
      if (error instanceof AppError && error.code === 'AUTH_FAILED') throw this.#fail(request, error, 'pair');
      throw error;
    }
  }

  /** Notes the failure and says what the peer is told: that it failed, or that it does so too often. */
  #fail(request: IncomingMessage, error: AppError, action = 'auth'): AppError {
    const { audit, log } = this.#options;
    const from = addressOf(request.socket);
    const nowMs = performance.now();
    const waitMs = this.#failures.blockedMs(from, nowMs);
    const isGuess = action === 'pair' || request.headers.authorization !== undefined;
    if (isGuess) this.#failures.note(from, nowMs);
    if (waitMs > 0) return tooManyFailures(waitMs); // said once, when it began: it must not fill the logs
    audit({ action, outcome: error.code, from });
    if (this.#failures.blockedMs(from, nowMs) > 0) {
      audit({ action, outcome: 'RATE_LIMITED', from });
      log.warn({ event: 'too-many-failed-logins', ip: from });
    }
    return error;
  }
}

function tooManyFailures(retryAfterMs: number): AppError {
  const message = 'Too many failed logins from this address. Wait for as long as Retry-After says, in seconds.';
  return new AppError('RATE_LIMITED', message, { retryAfterMs });
}
