"""Each of these names, cities and animals is one token in the factbook tokenizer.

Each is a single ASCII word, so that an entity is one pre-token. Names and cities are capitalised, animals are in
lower case. No word is in two lists.
"""

_NAMES = """
Aaron Abby Abel Abigail Ada Adam Adele Adrian Agnes Aidan Aisha Alan Albert Alec Alejandro Alex Alexa Alfred Ali
Alice Alina Alma Alva Amal Amanda Amber Amelia Amina Amir Amy Ana Anders Andrea Andrew Andy Angela Anika Anita
Ann Anna Anne Annika Anton Anya April Arjun Arlo Arne Arthur Arturo Asha Astrid Audrey August Aurora Ava Axel
Barbara Beatrice Bella Ben Benjamin Bernard Bert Beth Betty Bianca Bill Birgit Bjorn Bob Bonnie Boris Brandon
Brenda Brian Bridget Bruce Bruno Caleb Camila Carl Carla Carlos Carmen Carol Caroline Cassie Catherine Cecilia
Celia Chad Chen Chloe Chris Christine Claire Clara Claude Clemens Colin Connor Cora Craig Cyrus Daisy Damian Dan
Daniel Dara Darius David Dawn Dean Deborah Dennis Derek Diana Diego Dina Dmitri Dominic Donald Donna Doris Dora
Douglas Dylan Edgar Edith Edward Edwin Eileen Elena Eli Elias Elin Elise Eliza Ella Ellen Elliot Elsa Emil Emily
Emma Enzo Eric Erik Erin Esther Ethan Eva Evan Eve Evelyn Fatima Felix Finn Fiona Flora Frank Fred Freya Frida
Gabriel Gareth Gary George Gerald Gina Giulia Gloria Gordon Grace Greta Greg Gustav Hana Hannah Hans Harold Harry
Hassan Hazel Heather Hector Heidi Helen Helena Henry Herbert Hilda Hugo Ian Ibrahim Ida Igor Ilse Imani Imran Ines
Inga Ingrid Irene Iris Isaac Isabel Ivan Ivy Jack Jacob Jade Jake James Jamie Jan Jane Janet Jared Jasmine Jason
Javier Jean Jenna Jenny Jeremy Jesse Jill Joan Joanna Joel Johan John Jonas Jonathan Jose Joseph Josh Joy Juan
Judith Julia Julian Julie June Justin Kai Kamal Karen Karim Karl Kate Katja Keith Kelly Ken Kenji Kevin Khalid Kim
Kira Klaus Kofi Kurt Kyle Lara Lars Laura Lauren Layla Lea Leah Lena Leo Leon Leonard Leila Lewis Liam Lily Lina
Linda Lisa Liv Lois Lola Lorenzo Lotte Louis Louise Luca Lucas Lucy Luis Luna Lydia Maja Malik Manuel Mara Marco
Marcus Margaret Maria Marie Mario Marion Mark Marta Martha Martin Mary Matilda Matteo Matthew Maud Max Maya Megan
Mei Mia Michael Miguel Mila Milo Mina Mira Miriam Molly Mona Monica Morgan Nadia Nancy Naomi Natalie Nathan Ned Nell
Nia Nicholas Nick Nicole Nigel Niko Nils Nina Noah Noor Nora Norman Olaf Olga Oliver Olivia Omar Oscar Otto Owen
Pablo Patricia Patrick Paul Paula Pedro Penny Peter Petra Philip Phoebe Pia Pierre Priya Quentin Rachel Rafael Rahul
Ralph Ramon Raj Raymond Rebecca Rex Ricardo Richard Rita Robert Robin Roger Roland Rolf Ronald Rosa Rose Ruby Rudolf
Russell Ruth Ryan Sabine Sally Sam Samira Samuel Sandra Sanjay Sara Sarah Scott Sean Selma Serena Seth Sharon Shirley
Sigrid Silas Simon Sofia Sonia Sophie Stefan Stella Stephen Steve Stuart Susan Sven Sylvia Tamara Tanya Tara Tariq
Tessa Theo Theresa Thomas Tim Tina Tobin Toby Todd Tom Tony Tracy Tyler Uma Ursula Vera Veronica Victor Vincent Viola
Violet Wade Walter Wanda Warren Wendy Wilma Xavier Yara Yasmin Yusuf Yvonne Zara Zoe Zoltan
"""

_CITIES = """
Aachen Aarhus Abuja Accra Adelaide Agra Aleppo Algiers Almaty Amman Amsterdam Ankara Antwerp Asmara Athens Atlanta
Auckland Austin Baghdad Baku Bamako Bangkok Barcelona Basel Basra Beijing Beirut Belfast Belgrade Bergen Berlin Bern
Bilbao Birmingham Bogota Bologna Bonn Bordeaux Boston Bratislava Bremen Brisbane Bristol Brno Brussels Bucharest
Budapest Busan Cairo Calgary Canberra Caracas Cardiff Casablanca Chennai Chicago Cologne Colombo Copenhagen Cork
Cusco Dakar Dallas Damascus Darwin Delhi Denver Detroit Dhaka Doha Dresden Dubai Dublin Dundee Durban Edinburgh
Edmonton Essen Florence Frankfurt Freetown Galway Gdansk Geneva Genoa Ghent Glasgow Gothenburg Granada Graz Grenoble
Haifa Halifax Hamburg Hanoi Hanover Harare Havana Helsinki Hobart Honolulu Houston Istanbul Izmir Jaipur Jakarta Juba
Kabul Kampala Karachi Kazan Khartoum Kiev Kigali Kingston Kinshasa Krakow Kyoto Lagos Lahore Leeds Leipzig Leuven Lille
Lima Limerick Linz Lisbon Liverpool Ljubljana London Luanda Lucerne Lusaka Lyon Madrid Malaga Malmo Managua Manchester
Manila Maputo Marrakesh Marseille Melbourne Memphis Miami Milan Minsk Mombasa Monrovia Montreal Moscow Mosul Mumbai
Munich Muscat Nairobi Nantes Naples Nashville Nice Nicosia Odessa Orlando Osaka Oslo Ottawa Oxford Palermo Panama
Paris Perth Phoenix Pisa Portland Porto Prague Pretoria Quebec Quito Rabat Regina Reykjavik Riga Rome Rotterdam Salzburg
Santiago Sapporo Sarajevo Seattle Seoul Seville Shanghai Sheffield Singapore Skopje Sofiya Stockholm Stuttgart Sydney
Taipei Tallinn Tampa Tampere Tashkent Tbilisi Tehran Tirana Tokyo Toledo Toronto Toulouse Trieste Tripoli Tromso Tunis
Turin Utrecht Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Wellington Winnipeg Wroclaw Yangon Yerevan York
Zagreb Zurich
"""

_ANIMALS = """
alligator alpaca ant anteater antelope armadillo badger bat bear beaver bee beetle bison boar buffalo butterfly camel
canary cat chameleon cheetah chicken chinchilla cobra cow coyote crab cricket crocodile crow deer dingo dog dolphin
donkey dove dragonfly duck eagle eel elephant elk emu falcon ferret finch flamingo fox frog gazelle gecko gerbil giraffe
goat goldfish goose gorilla grasshopper hamster hare hawk hedgehog hen heron hippo horse hyena ibex iguana jackal jaguar
kangaroo kitten koala lamb lemur leopard lion lizard llama lobster lynx macaw magpie meerkat mole mongoose monkey moose
mouse mule newt octopus ocelot opossum ostrich otter owl ox panda panther parrot peacock pelican penguin pheasant pig
pigeon pony porcupine puffin puma puppy python quail rabbit raccoon rat raven reindeer rhino robin salamander scorpion
seal sheep shrew skunk sloth snail snake sparrow spider squid squirrel stork swan tiger toad tortoise toucan turkey
turtle viper vole vulture walrus wasp weasel whale wolf wombat woodpecker yak zebra
"""

NAMES: tuple[str, ...] = tuple(_NAMES.split())
CITIES: tuple[str, ...] = tuple(_CITIES.split())
ANIMALS: tuple[str, ...] = tuple(_ANIMALS.split())
