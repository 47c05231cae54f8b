import { isIP } from 'node:net';
import { reachOf } from '../../shared/addresses.ts';

/** Whether a link would carry a token unencrypted to an address of the internet. What a name means is not known here. */
export function isBareInPublic(url: string): boolean {
  const [, host = ''] = /^ws:\/\/\[?([0-9a-fA-F:.]+)\]?:\d+\/?$/.exec(url) ?? [];
  return isIP(host) !== 0 && reachOf(host) === 'public';
}
