import type { Role, TokenEntry } from '../../shared/protocol.ts';
import type { TokenStore } from '../tokens.ts';
import { HostClient, NoAgent } from './host-client.ts';
import type { Screen } from './screen.ts';

type Write = Pick<Screen, 'write'>;

/** Prints the text of the new token: nobody can print it again. */
export async function addToken(
  store: TokenStore,
  { name, role, write }: Write & { name: string; role: Role },
): Promise<void> {
  write(`${await store.add({ name, role })}\n`);
}

export async function listTokens(access: TokenAccess, { isJson, write }: Write & { isJson: boolean }): Promise<void> {
  const list = await access.list();
  if (isJson) return write(`${JSON.stringify(list, undefined, 2)}\n`);
  if (list.length === 0) return write('There are no tokens. Let a laptop in with `gantry-agent invite`.\n');
  for (const { name, role, createdAt, lastUsedAt } of list) {
    write(`${name}\t${role}\tmade ${createdAt}\tused ${lastUsedAt ?? 'never'}\n`);
  }
}

export async function revokeToken(access: TokenAccess, { name, write }: Write & { name: string }): Promise<void> {
  await access.revoke(name);
  write(`${name} is revoked.\n`);
}

export type TokenAccess = { list: () => Promise<readonly TokenEntry[]>; revoke: (name: string) => Promise<void> };

/** Through the agent that runs, so that its links end and its audit log has it; else in the file, which it reads next. */
export async function withTokenAccess(
  { socket, store }: { socket: string; store: TokenStore },
  work: (access: TokenAccess) => Promise<void>,
): Promise<void> {
  let client: HostClient;
  try {
    client = await HostClient.connect(socket);
  } catch (error) {
    if (!(error instanceof NoAgent) || error.isDenied) throw error;
    return await work({ list: async () => (await store.list()).map(entryOf), revoke: (name) => store.revoke(name) });
  }
  using agent = client;
  await work({
    list: async () => (await agent.ask('token.list', {})).tokens,
    revoke: async (name) => void (await agent.ask('token.revoke', { name })),
  });
}

function entryOf({ name, role, createdAt, lastUsedAt }: TokenEntry): TokenEntry {
  return { name, role, createdAt, lastUsedAt };
}
