import { createHash, randomInt, timingSafeEqual } from 'node:crypto';
import { AppError } from '../shared/errors.ts';
import type { Role } from '../shared/protocol.ts';
import { LIMITS } from '../shared/limits.ts';
import type { TokenStore } from './tokens.ts';

type OpenInvite = { digest: Buffer; role: Role; expiresAtMs: number };

/** Without letters and digits that look alike. */
const ALPHABET = 'ABCDEFGHJKMNPQRSTVWXYZ23456789';
const CODE_LENGTH = 8;
const MOST_OPEN = 20;

export type PairingOptions = { tokens: Pick<TokenStore, 'add' | 'list'>; now?: () => number };

/**
 * The open invites of this agent: a code for each, kept as its digest and in memory only. Each works once, for ten minutes,
 * and no longer than until the fifth wrong code of anybody, because a wrong one does not say which it was meant to be.
 */
export class Pairing {
  readonly #options: PairingOptions;
  readonly #now: () => number;
  #open: OpenInvite[] = [];
  #wrong = 0;

  constructor(options: PairingOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  invite(role: Role): { code: string; expiresInMs: number } {
    this.#expire();
    if (this.#open.length === 0) this.#wrong = 0;
    const code = newCode();
    const expiresInMs = LIMITS.inviteMs.value;
    const invite = { digest: digestOf(code), role, expiresAtMs: this.#now() + expiresInMs };
    this.#open = [...this.#open, invite].slice(-MOST_OPEN);
    return { code, expiresInMs };
  }

  /** A token of its own for whoever brings the code. Every other code is refused in the same words. */
  async redeem({ code, name }: { code: string; name: string }): Promise<{ token: string; role: Role; name: string }> {
    this.#expire();
    const digest = digestOf(code.toUpperCase());
    let found: OpenInvite | undefined;
    // No early exit: how long this takes says nothing about the codes.
    for (const invite of this.#open) if (timingSafeEqual(invite.digest, digest)) found = invite;
    if (found === undefined) {
      this.#wrong += 1;
      if (this.#wrong >= LIMITS.inviteTries.value) this.#open = [];
      throw refused();
    }
    this.#open = this.#open.filter((invite) => invite !== found); // before anything is awaited: it works once
    const { role } = found;
    const free = await this.#freeName(name);
    return { token: await this.#options.tokens.add({ name: free, role }), role, name: free };
  }

  #expire(): void {
    this.#open = this.#open.filter(({ expiresAtMs }) => expiresAtMs > this.#now());
  }

  /** The label a laptop gives itself, as far as it is a name, with a number where another one has it. */
  async #freeName(asked: string): Promise<string> {
    const base =
      asked
        .replace(/[^\w.@ -]/g, '-')
        .trim()
        .slice(0, 80) || 'laptop';
    const taken = new Set((await this.#options.tokens.list()).map(({ name }) => name));
    for (let number = 1; ; number += 1) {
      const name = number === 1 ? base : `${base}-${number}`;
      if (!taken.has(name)) return name;
    }
  }
}

function refused(): AppError {
  return new AppError(
    'AUTH_FAILED',
    'The agent refused the code: it was used, it is older than ten minutes, or it never was. ' +
      'Run `gantry-agent invite` on that host and use the new line.',
  );
}

function newCode(): string {
  const letters = Array.from({ length: CODE_LENGTH }, () => ALPHABET[randomInt(ALPHABET.length)]);
  return `${letters.slice(0, 4).join('')}-${letters.slice(4).join('')}`;
}

function digestOf(code: string): Buffer {
  return createHash('sha256').update(code).digest();
}
