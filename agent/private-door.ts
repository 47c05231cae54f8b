import { readFile, rm } from 'node:fs/promises';
import { writeDurable } from '../shared/durable-file.ts';
import type { PrivateLink } from '../shared/private-link.ts';
import { linkFile, tokenFile } from '../shared/private-link.ts';
import { TokenStore } from './tokens.ts';

const TOKEN_NAME = 'bridge';

/**
 * Lets the bridges of this user find the agent: writes how to link, until disposed. Only the process that holds the state
 * directory may open it, so nobody else writes these files. The token is the same in every run: jobs and results are kept
 * by it.
 */
export class PrivateDoor implements AsyncDisposable {
  readonly #stateDir: string;

  private constructor(stateDir: string) {
    this.#stateDir = stateDir;
  }

  static async open({
    stateDir,
    address,
  }: {
    stateDir: string;
    address: { host: string; port: number };
  }): Promise<PrivateDoor> {
    await keepToken(stateDir);
    const host = address.host.includes(':') ? `[${address.host}]` : address.host;
    const link: PrivateLink = { pid: process.pid, url: `ws://${host}:${address.port}` };
    await writeDurable(linkFile(stateDir), `${JSON.stringify(link)}\n`);
    return new PrivateDoor(stateDir);
  }

  /** Before the port closes: who looks from now on waits until this agent is gone, and starts another. */
  async [Symbol.asyncDispose](): Promise<void> {
    await rm(linkFile(this.#stateDir), { force: true });
  }
}

/** A token whose text was lost, or that the store does not know, is replaced. */
async function keepToken(stateDir: string): Promise<void> {
  await using store = new TokenStore({ stateDir });
  const path = tokenFile(stateDir);
  const text = await readFile(path, 'utf8').catch(() => ''); // absent at the first start
  if (text !== '' && (await store.check(text.trim())) !== undefined) return;
  if ((await store.list()).some(({ name }) => name === TOKEN_NAME)) await store.revoke(TOKEN_NAME);
  await writeDurable(path, `${await store.add({ name: TOKEN_NAME, role: 'operator' })}\n`);
}
