import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { z } from 'zod';
import { pause } from '../../shared/abort.ts';
import { makeDirectory } from '../../shared/durable-file.ts';
import { AppError } from '../../shared/errors.ts';
import type { Invite } from '../../shared/invite.ts';
import { parseInvite } from '../../shared/invite.ts';
import { SERVER_NAME } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import { StateFile } from '../../shared/state-file.ts';
import { BatchLock } from '../fleet/batch-lock.ts';
import type { HostAddress, HostConfig } from '../fleet/host-view.ts';
import { redeemInvite } from './redeem-invite.ts';

const Stored = z.object({
  url: z.string(),
  token: z.string(),
  agentId: z.string(),
  certificate: z.string().optional(),
});

const LOOK_EVERY_MS = 100;

export type InvitedOptions = { stateDir: string; taken: readonly string[]; clientName: () => string; log: Log };

/** The hosts of GANTRY_HOSTS. Nothing is asked of anybody before the first connection. */
export function invitedHosts(lines: readonly string[], options: InvitedOptions): HostConfig[] {
  return listInvites(lines, options.taken).map(({ name, url, invite }) => {
    const host = new InvitedHost(invite, { ...options, name });
    return { name, url, token: '', reach: (signal) => host.reach(signal) };
  });
}

/** What each line is called and where it leads; one that is no invite is the sentence that says so. */
export function listInvites(
  lines: readonly string[],
  others: readonly string[],
): { name: string; url: string; invite: Invite | string }[] {
  const taken = new Set(others);
  return lines.map((line) => {
    const invite = readable(line);
    const name = freeName(invite, taken);
    taken.add(name);
    const scheme = typeof invite === 'string' || invite.fingerprint === undefined ? 'ws' : 'wss';
    const url = typeof invite === 'string' ? line.slice(0, 30) : `${scheme}://${invite.addresses[0] ?? ''}`;
    return { name, url, invite };
  });
}

/**
 * One invite: paired at the first use, by whichever bridge is first. The token is kept in the state directory under the
 * digest of the invite, so that later bridges of this laptop read it, for which the code would be dead.
 */
class InvitedHost {
  readonly #invite: Invite | string;
  readonly #options: Omit<InvitedOptions, 'taken'> & { name: string };
  readonly #directory: string;
  readonly #file: StateFile<z.infer<typeof Stored>>;
  /** What a spent code was exchanged for, where it is not on the disk: nobody can ask for it a second time. */
  #unsaved: z.infer<typeof Stored> | undefined;
  /** Why this code will never work: asking again would only count as another guess. */
  #refusal: AppError | undefined;

  constructor(invite: Invite | string, options: Omit<InvitedOptions, 'taken'> & { name: string }) {
    this.#invite = invite;
    this.#options = options;
    this.#directory = join(options.stateDir, 'paired', digestOf(invite));
    this.#file = new StateFile({ path: join(this.#directory, 'host.json'), schema: Stored, log: options.log });
  }

  async reach(signal: AbortSignal): Promise<HostAddress> {
    if (typeof this.#invite === 'string') throw new AppError('INVALID_ARGUMENT', `GANTRY_HOSTS: ${this.#invite}`);
    if (this.#unsaved !== undefined) return addressOf(await this.#save(this.#unsaved));
    await makeDirectory(this.#directory, { mode: 0o700 });
    for (;;) {
      const stored = await this.#file.read();
      if (stored !== undefined) return addressOf(stored);
      if (this.#refusal !== undefined) throw this.#refusal;
      const lock = await BatchLock.acquire(this.#directory, { pid: process.pid, client: 'gantry' });
      if (lock instanceof BatchLock) {
        await using _held = lock;
        return addressOf((await this.#file.read()) ?? (await this.#pair(this.#invite, signal)));
      }
      await pause(LOOK_EVERY_MS, signal); // another bridge is pairing: what it gets is for all of them
      signal.throwIfAborted();
    }
  }

  async #pair(invite: Invite, signal: AbortSignal): Promise<z.infer<typeof Stored>> {
    const { name, clientName, log } = this.#options;
    try {
      const { url, token, agentId, certificate } = await redeemInvite(invite, { name: clientName(), signal });
      const stored = { url, token, agentId, ...(certificate !== undefined && { certificate }) };
      log.info({ event: 'paired', host: name, url });
      return await this.#save(stored);
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== 'AUTH_FAILED') throw error;
      this.#refusal = new AppError(
        'AUTH_FAILED',
        `The invite of ${name} in GANTRY_HOSTS cannot be used (any more): ${error.message} Put it into GANTRY_HOSTS in place ` +
          'of the old one; an invite is used within ten minutes, and afterwards it may stay there.',
      );
      throw this.#refusal;
    }
  }

  /** A full disk costs the other bridges the host, not this one: it is tried again with each new link. */
  async #save(stored: z.infer<typeof Stored>): Promise<z.infer<typeof Stored>> {
    this.#unsaved = stored;
    try {
      await this.#file.write(stored);
      this.#unsaved = undefined;
    } catch (error) {
      const { name: host, log } = this.#options;
      log.error({ event: 'pairing-not-saved', host, directory: this.#directory, err: error });
    }
    return stored;
  }
}

function addressOf({ url, token, certificate }: z.infer<typeof Stored>): HostAddress {
  return { url, token, ...(certificate !== undefined && { tls: { ca: certificate, servername: SERVER_NAME } }) };
}

/** A line that is no invite becomes a host that says so: the others work all the same. */
function readable(line: string): Invite | string {
  try {
    return parseInvite(line);
  } catch (error) {
    if (error instanceof AppError) return error.message;
    throw error;
  }
}

function freeName(invite: Invite | string, taken: ReadonlySet<string>): string {
  const base = typeof invite === 'string' ? 'invite' : hostNameOf(invite);
  for (let number = 1; ; number += 1) {
    const name = number === 1 ? base : `${base}-${number}`;
    if (!taken.has(name)) return name;
  }
}

/** What the agent calls its machine, else the address without its port. */
export function hostNameOf({ name, addresses: [first = ''] }: Invite): string {
  const text = name ?? first.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  return (
    text
      .replace(/[^A-Za-z0-9._-]/g, '-')
      .replace(/^[^A-Za-z0-9]+/, '')
      .slice(0, 63) || 'host'
  );
}

function digestOf(invite: Invite | string): string {
  const text = typeof invite === 'string' ? invite : `${invite.fingerprint ?? ''} ${invite.code}`;
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}
