import type { Role } from '../../shared/protocol.ts';
import type { TokenStore } from '../tokens.ts';
import type { Screen } from './screen.ts';

type Write = Pick<Screen, 'write'>;

/** Prints the text of the new token: nobody can print it again. */
export async function addToken(
  store: TokenStore,
  { name, role, write }: Write & { name: string; role: Role },
): Promise<void> {
  write(`${await store.add({ name, role })}\n`);
}

export async function listTokens(store: TokenStore, { isJson, write }: Write & { isJson: boolean }): Promise<void> {
  const list = (await store.list()).map(({ name, role, createdAt, lastUsedAt }) => ({
    ...{ name, role, createdAt, lastUsedAt },
  }));
  if (isJson) return write(`${JSON.stringify(list, undefined, 2)}\n`);
  if (list.length === 0) return write('There are no tokens. Make one with `gantry-agent tokens add NAME`.\n');
  for (const { name, role, createdAt, lastUsedAt } of list) {
    write(`${name}\t${role}\tmade ${createdAt}\tused ${lastUsedAt ?? 'never'}\n`);
  }
}

export async function revokeToken(store: TokenStore, { name, write }: Write & { name: string }): Promise<void> {
  await store.revoke(name);
  write(`${name} is revoked.\n`);
}
