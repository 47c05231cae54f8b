import { z } from 'zod';

/** The arguments of a tool as a command needs them for its flags: also with the words that only a person needs. */
export type FlagShape = { name: string; inputSchema: { properties?: Record<string, object> | undefined } };

/** Tools that are commands, too. */
const MAKING = ['generate_image', 'edit_image', 'batch_generate'];

/** As the list of tools, finished by the build: `--help` shall not wait for all of the tools. */
export async function flagList(): Promise<readonly FlagShape[]> {
  const { TOOLS } = await import('./tools.ts');
  return TOOLS.filter(({ name }) => MAKING.includes(name)).map(({ name, input }) => ({
    name,
    inputSchema: z.toJSONSchema(input, {
      io: 'input',
      override: ({ jsonSchema }) => {
        const { note } = jsonSchema;
        delete jsonSchema['note'];
        if (typeof note === 'string') jsonSchema.description ??= note;
      },
    }) as FlagShape['inputSchema'], // zod types JSON Schema with booleans for schemas; an object's properties are none here
  }));
}
