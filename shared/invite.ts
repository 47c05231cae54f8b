import { AppError } from './errors.ts';

/** What lets a laptop in: where the agent is, how to know it, and a code that works once. */
export type Invite = {
  /** `address:port`, the likeliest first. */
  addresses: readonly string[];
  /** `sha256:` and the digest of the certificate in base64url; undefined where the port is not encrypted. */
  fingerprint: string | undefined;
  code: string;
  /** What the host calls itself; a laptop may call it otherwise. */
  name?: string | undefined;
};

const SCHEME = 'gantry://';
const ADDRESS = /^([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9a-fA-F:.]{2,45}\]):([1-9]\d{0,4})$/;
const FINGERPRINT = /^sha256:[A-Za-z0-9_-]{43}$/;
const CODE = /^[A-Za-z0-9-]{4,64}$/;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const MOST_ADDRESSES = 16;

/** One line without blanks. It has characters that a shell would read, so it is shown in quotes. */
export function formatInvite({ addresses: [first = '', ...others], fingerprint, code, name }: Invite): string {
  const query = [
    ...(name === undefined || !NAME.test(name) ? [] : [`name=${name}`]),
    ...others.map((address) => `or=${address}`),
    fingerprint === undefined ? 'tls=off' : `fp=${fingerprint}`,
    `code=${code}`,
  ];
  return `${SCHEME}${first}?${query.join('&')}`;
}

/** Throws INVALID_ARGUMENT that says what is wrong; the code is in no message. */
export function parseInvite(line: string): Invite {
  const text = line.trim().replace(/^['"](.*)['"]$/, '$1');
  if (!text.startsWith(SCHEME)) throw invalid('it does not begin with gantry://');
  const [first = '', query = ''] = text.slice(SCHEME.length).split('?');
  const fields = query.split('&').map((field) => field.split('=', 2) as [string, string | undefined]); // split gives at most two
  const all = (name: string): string[] => fields.flatMap(([key, value]) => (key === name && value ? [value] : []));
  const addresses = [first.replace(/\/$/, ''), ...all('or')];
  const bad = addresses.find((address) => !ADDRESS.test(address) || Number(address.split(':').at(-1)) > 65_535);
  if (bad !== undefined || addresses.length > MOST_ADDRESSES) throw invalid('its address is none');
  const [code = ''] = all('code');
  if (!CODE.test(code)) throw invalid('it has no code. A shell cuts it at the & unless it is in quotes');
  const [fingerprint] = all('fp');
  if (fingerprint === undefined && !all('tls').includes('off')) throw invalid('it has no fingerprint (fp)');
  if (fingerprint !== undefined && !FINGERPRINT.test(fingerprint)) throw invalid('its fingerprint is not whole');
  const name = all('name').find((each) => NAME.test(each));
  return { addresses, fingerprint, code, ...(name !== undefined && { name }) };
}

function invalid(why: string): AppError {
  return new AppError(
    'INVALID_ARGUMENT',
    `This is no invite: ${why}. Run \`gantry-agent invite\` on the host and pass the whole line in quotes.`,
  );
}
