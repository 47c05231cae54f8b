import { createHash, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';
import { mkdir, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { pause } from '../shared/abort.ts';
import { AppError, errorCode } from '../shared/errors.ts';
import { Uuid } from '../shared/job.ts';
import { Role } from '../shared/protocol.ts';
import type { TokenRef } from './job/session.ts';

const StoredToken = z.object({
  id: Uuid,
  name: z.string(),
  role: Role,
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  createdAt: z.string(),
  lastUsedAt: z.string().nullable(),
});
export type StoredToken = z.infer<typeof StoredToken>;

const TokenFile = z.object({ tokens: z.array(StoredToken) });

const PREFIX = 'gantry_';
const USE_NOTED_EVERY_MS = 60_000;
const LOCK_STALE_MS = 10_000;
const LOCK_RETRY_MS = 50;

/**
 * Who has access: `tokens.json` of the state directory. It holds digests, never a token's text. The daemon and the
 * commands on the host change the same file; each change is made under a lock and appears whole.
 */
export class TokenStore implements AsyncDisposable {
  readonly #dir: string;
  readonly #path: string;
  #tokens: readonly StoredToken[] = [];
  #version = '';
  #noting: Promise<void> = Promise.resolve();
  readonly #onRevoked: (tokenId: string) => void;

  /** `onRevoked` is called when a token is found to be gone that was there before. */
  constructor({ stateDir, onRevoked }: { stateDir: string; onRevoked?: (tokenId: string) => void }) {
    this.#onRevoked = onRevoked ?? (() => undefined);
    this.#dir = stateDir;
    this.#path = join(stateDir, 'tokens.json');
  }

  /** The token this text is, or undefined. Reads the file again when it changed: a revoked token ends at once. */
  async check(text: string): Promise<TokenRef | undefined> {
    await this.refresh();
    const digest = digestOf(text);
    let found: StoredToken | undefined;
    // No early exit: how long this takes says nothing about which token nearly matched.
    for (const token of this.#tokens) if (timingSafeEqual(Buffer.from(token.sha256, 'hex'), digest)) found = token;
    if (found === undefined) return undefined;
    this.#noteUse(found);
    return { id: found.id, role: found.role };
  }

  /** Whether a token of this id exists with this role, as of the last `refresh`. */
  isValid({ id, role }: TokenRef): boolean {
    return this.#tokens.some((token) => token.id === id && token.role === role);
  }

  async refresh(): Promise<void> {
    const version = await versionOf(this.#path);
    if (version === this.#version) return;
    const { tokens, isDamaged } = await this.#read();
    if (isDamaged) await this.#change((mended) => mended);
    else this.#adopt(tokens, version);
  }

  async list(): Promise<readonly StoredToken[]> {
    await this.refresh();
    return this.#tokens;
  }

  /** Makes a token and returns its text, which is kept nowhere. */
  async add({ name, role }: { name: string; role: Role }): Promise<string> {
    if (!/^[\w.@ -]{1,100}$/.test(name)) {
      throw new AppError(
        'INVALID_ARGUMENT',
        `${JSON.stringify(name)} is not a name: use letters, digits, . @ _ - and spaces.`,
      );
    }
    const text = PREFIX + randomBytes(32).toString('base64url');
    const sha256 = digestOf(text).toString('hex');
    await this.#change((tokens) => {
      if (tokens.some((token) => token.name === name)) {
        throw new AppError(
          'INVALID_ARGUMENT',
          `There is already a token named ${name}. Revoke it first, or use another name.`,
        );
      }
      const createdAt = new Date().toISOString();
      return [...tokens, { id: randomUUID(), name, role, sha256, createdAt, lastUsedAt: null }];
    });
    return text;
  }

  async revoke(name: string): Promise<void> {
    await this.#change((tokens) => {
      const left = tokens.filter((token) => token.name !== name);
      if (left.length < tokens.length) return left;
      const names = tokens.map((token) => token.name).join(', ') || 'none';
      throw new AppError('INVALID_ARGUMENT', `There is no token named ${name}. Known: ${names}.`);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#noting;
  }

  #noteUse({ id, lastUsedAt }: StoredToken): void {
    if (lastUsedAt !== null && Date.now() - Date.parse(lastUsedAt) < USE_NOTED_EVERY_MS) return;
    const now = new Date().toISOString();
    const used = (token: StoredToken) => (token.id === id ? { ...token, lastUsedAt: now } : token);
    this.#tokens = this.#tokens.map(used); // at once, so that the next request does not write again
    this.#noting = this.#noting.then(() => this.#change((tokens) => tokens.map(used))).catch(() => undefined); // the time of the last use is a courtesy: a full disk must not refuse the request
  }

  /** Reads, changes and replaces the file, while no other process does. A damaged one is moved aside. */
  async #change(change: (tokens: readonly StoredToken[]) => readonly StoredToken[]): Promise<void> {
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    await using _lock = await lockFile(`${this.#path}.lock`);
    const read = await this.#read();
    const tokens = change(read.tokens);
    if (read.isDamaged) await rename(this.#path, `${this.#path}.corrupt-${Date.now()}`);
    const next = `${this.#path}.new`;
    await rm(next, { force: true }); // of a process that died
    await writeNew(next, `${JSON.stringify({ tokens }, undefined, 2)}\n`, this.#dir);
    await rename(next, this.#path);
    this.#adopt(tokens, await versionOf(this.#path));
  }

  /** Whatever way the file came to be known: a token that is not in it any more was revoked. */
  #adopt(tokens: readonly StoredToken[], version: string): void {
    const before = this.#tokens;
    this.#tokens = tokens;
    this.#version = version;
    for (const { id } of before) if (!tokens.some((token) => token.id === id)) this.#onRevoked(id);
  }

  /** Of a damaged file what this process knew before, else the entries that are left. */
  async #read(): Promise<{ tokens: readonly StoredToken[]; isDamaged: boolean }> {
    let text: string;
    try {
      text = await readFile(this.#path, 'utf8');
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return { tokens: [], isDamaged: false };
      throw error;
    }
    const whole = TokenFile.safeParse(parseJson(text));
    if (whole.success) return { tokens: whole.data.tokens, isDamaged: false };
    return { tokens: this.#tokens.length > 0 ? this.#tokens : entriesLeft(text), isDamaged: true };
  }
}

/** An entry has no braces inside, so that each one is found by itself. */
function entriesLeft(text: string): StoredToken[] {
  const entries = text.match(/\{[^{}]*\}/g) ?? [];
  return entries.flatMap((entry) => StoredToken.safeParse(parseJson(entry)).data ?? []);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown; // JSON.parse returns `any`
  } catch {
    return undefined; // no schema accepts it: the file counts as damaged
  }
}

function digestOf(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

async function versionOf(path: string): Promise<string> {
  try {
    const { ino, size, mtimeMs } = await stat(path);
    return `${ino} ${size} ${mtimeMs}`;
  } catch {
    return 'absent'; // reading it tells why, where that matters
  }
}

/** Holds a file that names this process. One that was left by a process that died is taken away. */
async function lockFile(path: string): Promise<AsyncDisposable> {
  const patience = AbortSignal.timeout(2 * LOCK_STALE_MS);
  for (;;) {
    try {
      await writeFile(path, String(process.pid), { flag: 'wx', mode: 0o600 });
      return { [Symbol.asyncDispose]: () => rm(path, { force: true }) };
    } catch (error) {
      const isHeld = errorCode(error) === 'EEXIST';
      if (!isHeld || patience.aborted) throw error;
    }
    if (await isStale(path)) await rm(path, { force: true });
    else await pause(LOCK_RETRY_MS, patience);
  }
}

/** A change takes milliseconds: a lock that is old, or whose holder is dead, holds nothing. */
async function isStale(path: string): Promise<boolean> {
  try {
    if (Date.now() - (await stat(path)).mtimeMs > LOCK_STALE_MS) return true;
    const pid = Number(await readFile(path, 'utf8'));
    return pid > 0 && !isAlive(pid); // 0: it is just being written
  } catch {
    return false; // gone in the meantime: the next try gets it
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return errorCode(error) !== 'ESRCH';
  }
}

/**
 * Root changes the file of a daemon that runs as another user, in a directory where that user, and with it every engine, may
 * put links: so the file is a new one, and what gets the directory's owner is that file and not whatever has its name by then.
 */
async function writeNew(path: string, text: string, directory: string): Promise<void> {
  await using file = await open(path, 'wx', 0o600);
  await file.writeFile(text);
  if (process.getuid?.() === 0) {
    const { uid, gid } = await stat(directory);
    await file.chown(uid, gid);
  }
  await file.sync();
}
