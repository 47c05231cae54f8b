import { AppError } from '../../shared/errors.ts';
import type { StreamOptions } from './answer-stream.ts';
import { streamAnswer } from './answer-stream.ts';
import { Base64Field } from './base64-field.ts';
import { SMALL_BODY_BYTES, engineError } from './engine.ts';

/** The largest picture a request may name has 67 megapixels: 201 MB of noise, a third more as base64. */
const MOST_BYTES = 300 * 1024 * 1024;

/**
 * Where the picture of an answer goes while it arrives. What becomes of it there is no matter of the engine, so neither
 * call fails: whoever owns the sink keeps the failure and tells it later.
 */
export type ImageSink = {
  /** A picture begins. What came of one before it is void. */
  begin(): void;
  /** The memory of the bytes is used again when the promise settles, at once where there is none. */
  write(bytes: Buffer): Promise<void> | undefined;
};

/** For whom an answer is only a sign of life. */
export const NOWHERE: ImageSink = { begin: () => undefined, write: () => undefined };

/**
 * One call that answers a picture: as bytes, or as base64 in `field` of a JSON object. It is decoded while it arrives and
 * never held, so it takes no memory however large it is. Resolves at the last byte of the answer.
 */
export async function callForImage(
  url: string,
  {
    field,
    sink,
    errorOf = engineError,
    ...options
  }: StreamOptions & { field: string; sink: ImageSink; errorOf?: typeof engineError },
): Promise<void> {
  let bytes = 0;
  let refused: { status: number; type: string; body: Buffer } | undefined;
  let base64: Base64Field | undefined;
  await streamAnswer(url, options, ({ status, headers }) => {
    const type = headers.get('content-type') ?? '';
    if (status !== 200) {
      const said = (refused = { status, type, body: Buffer.alloc(0) });
      return (piece) => {
        if (said.body.length + piece.length > SMALL_BODY_BYTES) throw tooLarge(SMALL_BODY_BYTES);
        said.body = Buffer.concat([said.body, piece]);
        return undefined;
      };
    }
    const field64 = type.startsWith('image/') ? undefined : (base64 = new Base64Field(field));
    sink.begin();
    return (piece) => {
      bytes += piece.length;
      if (bytes > MOST_BYTES) throw tooLarge(MOST_BYTES);
      const decoded = field64 === undefined ? piece : field64.push(piece);
      return decoded !== undefined && decoded.length > 0 ? sink.write(decoded) : undefined;
    };
  });
  if (refused !== undefined) throw errorOf(refused);
  if (base64?.isComplete === false) {
    throw new AppError('RESULT_INVALID', `The engine's answer of ${bytes} bytes has no complete "${field}".`);
  }
}

function tooLarge(most: number): AppError {
  return new AppError('RESULT_INVALID', `The engine's answer is larger than ${most} bytes.`);
}
